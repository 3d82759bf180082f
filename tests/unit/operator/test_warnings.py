"""Events of waiting objects are requested once per namespace, and only objects with new events are requeued."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill_operator.kube.errors import UnavailableError
from tunemill_operator.runtime.cache import Key
from tunemill_operator.runtime.warnings import Warnings

Json = dict[str, Any]
Jump = Callable[..., Any]


class Events:
    """An API server that responds with a delay, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.broken = False

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return the events by uid."""
        self.asked.append(namespace)
        await asyncio.sleep(0.1)
        if self.broken:
            raise UnavailableError("starting")
        return [
            {
                "involvedObject": {"uid": uid},
                "reason": "FailedMount",
                "message": message,
                "lastTimestamp": f"2026-11-21T12:00:{second:02}Z",
            }
            for uid, messages in self.said.items()
            for second, message in enumerate(messages)
        ]


class Listening:
    """A Warnings instance, and the keys that it reported as changed."""

    def __init__(self) -> None:
        self.events = Events()
        self.news: list[Key] = []
        self.warnings = Warnings(self.events, self.news.append)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Request events until the block ends."""
        task = asyncio.create_task(self.warnings.run())
        yield
        task.cancel()

    def expect(self, namespace: str, number: int, age: float = 10.0) -> None:
        """Register the pod of this number with this age in seconds."""
        since = datetime.now(UTC) - timedelta(seconds=age)
        self.warnings.expect((namespace, f"run-{number}"), {f"pod-{number}": since})

    def words(self, number: int) -> list[str]:
        """Return the known events of the pod of this number in team-a."""
        return [each.message for each in self.warnings.about(("team-a", f"run-{number}"))]


@contextlib.asynccontextmanager
async def with_a_known_event() -> AsyncIterator[Listening]:
    """A running Warnings instance with an event about pod-1: a Secret is missing."""
    listening = Listening()
    listening.events.said = {"pod-1": ["no secret"]}
    async with listening.running():
        listening.expect("team-a", 1)
        await asyncio.sleep(2)
        yield listening


def test_waiting_objects_of_a_namespace_share_one_request(jump: Jump) -> None:
    """Each object gets its own events, and objects without new events are not reconciled."""

    async def story() -> None:
        listening = Listening()
        listening.events.said = {"pod-1": ["no secret"], "pod-7": ["no claim"]}
        async with listening.running():
            for number in range(1000):
                listening.expect("team-a", number)
            listening.expect("team-b", 7)
            await asyncio.sleep(2)
        assert sorted(listening.events.asked) == ["team-a", "team-b"]
        assert sorted(listening.news) == [("team-a", "run-1"), ("team-a", "run-7"), ("team-b", "run-7")]
        assert [listening.words(number) for number in (0, 1, 7)] == [[], ["no secret"], ["no claim"]]

    jump(story())


def test_only_new_or_removed_events_requeue_an_object(jump: Jump) -> None:
    """The count of an event grows while its cause lasts."""

    async def story() -> None:
        async with with_a_known_event() as listening:
            assert len(listening.news) == 1
            listening.events.said = {"pod-1": ["no secret"], "pod-2": ["no claim"]}
            listening.expect("team-a", 1, age=9)  # another pod of the run, young: asked about at once
            await asyncio.sleep(2)
            assert len(listening.events.asked) == 2
            assert len(listening.news) == 1
            listening.events.said = {}
            listening.expect("team-a", 1, age=8)
            await asyncio.sleep(2)
        assert len(listening.news) == 2
        assert listening.words(1) == []

    jump(story())


def test_the_first_result_requeues_an_object_even_if_empty(jump: Jump) -> None:
    """After a restart it is unknown whether an object still has events."""

    async def story() -> None:
        listening = Listening()
        async with listening.running():
            listening.expect("team-a", 1)
            assert listening.warnings.awaits_first_answer(("team-a", "run-1"))
            assert not listening.warnings.awaits_first_answer(("team-a", "run-2"))
            await asyncio.sleep(2)
            assert listening.news == [("team-a", "run-1")]
            assert not listening.warnings.awaits_first_answer(("team-a", "run-1"))
            listening.expect("team-a", 1, age=9)
            await asyncio.sleep(2)
        assert listening.news == [("team-a", "run-1")]

    jump(story())


def test_objects_that_no_longer_wait_are_not_requested(jump: Jump) -> None:
    """Without waiting objects there are no requests."""

    async def story() -> None:
        listening = Listening()
        async with listening.running():
            listening.expect("team-a", 1)
            listening.warnings.expect(("team-a", "run-1"), {})
            await asyncio.sleep(100)
        assert listening.events.asked == []

    jump(story())


def test_events_are_not_requested_in_the_first_seconds_of_a_pod(jump: Jump) -> None:
    """Most pods start within them."""

    async def story() -> None:
        listening = Listening()
        async with listening.running():
            listening.expect("team-a", 1, age=-600)
            await asyncio.sleep(3)
        assert listening.events.asked == []

    jump(story())


def test_a_failed_request_is_retried_and_known_events_stay(jump: Jump) -> None:
    """A reported failure does not disappear while the API server is unavailable."""

    async def story() -> None:
        async with with_a_known_event() as listening:
            listening.events.broken = True
            listening.expect("team-a", 2)
            await asyncio.sleep(2)
            assert len(listening.events.asked) == 2
            assert listening.words(1) == ["no secret"]
            listening.events.broken = False
            listening.expect("team-a", 3)
            await asyncio.sleep(2)
        assert len(listening.events.asked) == 3
        assert len(listening.news) == 1

    jump(story())

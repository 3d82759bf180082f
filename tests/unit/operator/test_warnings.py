"""A thousand objects that wait ask the API server once, and only those are looked at of which something new is said."""

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
    """An API server that takes a moment to answer, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.said: dict[str, list[str]] = {}
        self.broken = False

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return what is said, by uid."""
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
    """Running Warnings, and the keys that they reported as changed."""

    def __init__(self) -> None:
        self.events = Events()
        self.news: list[Key] = []
        self.warnings = Warnings(self.events, self.news.append)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ask until the block ends."""
        task = asyncio.create_task(self.warnings.run())
        yield
        task.cancel()

    def expect(self, namespace: str, number: int, age: float = 10.0) -> None:
        """Listen to what is said about the pod of this number, so many seconds old."""
        since = datetime.now(UTC) - timedelta(seconds=age)
        self.warnings.expect((namespace, f"run-{number}"), {f"pod-{number}": since})

    def words(self, number: int) -> list[str]:
        """Return what is known to be said about the pod of this number in team-a."""
        return [each.message for each in self.warnings.about(("team-a", f"run-{number}"))]


@contextlib.asynccontextmanager
async def having_heard_of_a_secret() -> AsyncIterator[Listening]:
    """Running Warnings with an event about pod-1 that a Secret is missing."""
    listening = Listening()
    listening.events.said = {"pod-1": ["no secret"]}
    async with listening.running():
        listening.expect("team-a", 1)
        await asyncio.sleep(2)
        yield listening


def test_those_who_wait_in_one_namespace_share_one_question(jump: Jump) -> None:
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


def test_what_is_only_said_again_is_no_news_and_what_is_said_anew_or_no_more_is(jump: Jump) -> None:
    """An event is counted up for as long as its cause lasts."""

    async def story() -> None:
        async with having_heard_of_a_secret() as listening:
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


def test_a_first_answer_that_somebody_awaits_is_news_even_if_it_is_empty(jump: Jump) -> None:
    """A process that has just begun does not know whether an object is still complained about."""

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


def test_what_does_not_wait_any_more_is_not_asked_about(jump: Jump) -> None:
    """Nobody waits: nothing is asked."""

    async def story() -> None:
        listening = Listening()
        async with listening.running():
            listening.expect("team-a", 1)
            listening.warnings.expect(("team-a", "run-1"), {})
            await asyncio.sleep(100)
        assert listening.events.asked == []

    jump(story())


def test_a_pod_is_given_a_moment_to_start(jump: Jump) -> None:
    """Most do."""

    async def story() -> None:
        listening = Listening()
        async with listening.running():
            listening.expect("team-a", 1, age=-600)
            await asyncio.sleep(3)
        assert listening.events.asked == []

    jump(story())


def test_a_question_that_fails_is_asked_again_and_what_was_said_stays(jump: Jump) -> None:
    """Somebody whose failure was shown does not see it go because the API server was away."""

    async def story() -> None:
        async with having_heard_of_a_secret() as listening:
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

"""A thousand objects that wait ask the API server once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tunemill_operator.kube.errors import UnavailableError
from tunemill_operator.runtime.warnings import FRESH_SECONDS, Warnings

Json = dict[str, Any]
Jump = Callable[..., Any]


class Events:
    """An API server that takes a second to answer, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.broken = False

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return one warning about each of three pods."""
        self.asked.append(namespace)
        await asyncio.sleep(1)
        if self.broken:
            raise UnavailableError("starting")
        return [
            {
                "involvedObject": {"uid": f"pod-{number}"},
                "reason": "FailedMount",
                "message": f"of {namespace}, {len(self.asked)}",
                "lastTimestamp": "2026-11-21T12:00:00Z",
            }
            for number in range(3)
        ]


def test_those_who_wait_in_one_namespace_share_one_question(jump: Jump) -> None:
    """Also those who ask while it is being answered; each hears what concerns it."""

    async def story() -> None:
        events = Events()
        warnings = Warnings(events)
        asked = [warnings.about("team-a", [f"pod-{number % 4}"]) for number in range(1000)]
        answers = await asyncio.gather(*asked, warnings.about("team-b", ["pod-0", "pod-2"]))
        assert sorted(events.asked) == ["team-a", "team-b"]
        assert [len(answer) for answer in answers[:4]] == [1, 1, 1, 0]
        assert [complaint.about for complaint in answers[-1]] == ["pod-0", "pod-2"]

    jump(story())


def test_an_answer_is_soon_too_old(jump: Jump) -> None:
    """What was said meanwhile is heard."""

    async def story() -> None:
        warnings = Warnings(Events())
        first = await warnings.about("team-a", ["pod-0"])
        await asyncio.sleep(FRESH_SECONDS)
        second = await warnings.about("team-a", ["pod-0"])
        assert [each[0].message for each in (first, second)] == ["of team-a, 1", "of team-a, 2"]

    jump(story())


def test_a_question_that_fails_is_asked_again(jump: Jump) -> None:
    """By whoever looks next, not after a while."""

    async def story() -> None:
        events = Events()
        warnings = Warnings(events)
        events.broken = True
        with pytest.raises(UnavailableError):
            await warnings.about("team-a", ["pod-0"])
        events.broken = False
        assert await warnings.about("team-a", ["pod-0"])

    jump(story())

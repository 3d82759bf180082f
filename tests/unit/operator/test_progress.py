"""Who may report progress, and how reports are stored."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from property.builders import at, text
from tunemill_api.constants import LABEL_FINETUNE, PROGRESS_AUDIENCE
from tunemill_api.status import TrainerStatus
from tunemill_operator.engine.objects import pod_of
from tunemill_operator.progress.auth import (
    POD_UID,
    REMEMBERED_SECONDS,
    REVIEWS_AT_ONCE,
    NotAllowedError,
    NotAuthenticatedError,
    ReportAuthenticator,
)
from tunemill_operator.progress.board import Board, ProgressReport
from tunemill_operator.progress.turns import Pace

KEY = ("team-a", "support")
CLIENT = "10.0.0.1"
Jump = Callable[..., Any]


class Reviewer:
    """Responds to every token review as the test says, and counts."""

    def __init__(self, **status: Any) -> None:
        self.status = {
            "authenticated": True,
            "audiences": [PROGRESS_AUDIENCE],
            "user": {"extra": {POD_UID: ["pod"]}},
        } | status
        self.reviews = 0
        self.at_once = 0
        self.most_at_once = 0

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        """Take a second."""
        assert audience == PROGRESS_AUDIENCE
        self.reviews += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(1)
        self.at_once -= 1
        return self.status


class Pods:
    """Returns one pod."""

    def __init__(self, phase: str = "Running", **metadata: Any) -> None:
        body = {
            "namespace": "team-a",
            "name": "pod",
            "uid": "pod",
            "resourceVersion": "1",
            "creationTimestamp": text(at(0)),
            "labels": {LABEL_FINETUNE: "support"},
        }
        self.pod = pod_of({"metadata": body | metadata, "status": {"phase": phase}})

    def get(self, uid: str) -> Any:
        """Return it."""
        return self.pod if uid == "pod" else None


def test_the_running_pod_of_the_object_may_report(jump: Jump) -> None:
    """Identified by the pod uid in the token."""
    assert jump(ReportAuthenticator(Reviewer(), Pods()).pod_of("Bearer token", KEY, CLIENT)) == "pod"


@pytest.mark.parametrize(
    "status",
    [
        {"authenticated": False},
        {"authenticated": None},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"audiences": []},
        {"user": {}},
        {"user": {"extra": {POD_UID: []}}},
        {"user": {"extra": {POD_UID: ["pod", "other"]}}},
    ],
)
def test_a_token_without_pod_or_audience_is_refused(jump: Jump, status: dict[str, Any]) -> None:
    """Whatever the API server omits or adds."""
    with pytest.raises(NotAuthenticatedError):
        jump(ReportAuthenticator(Reviewer(**status), Pods()).pod_of("Bearer token", KEY, CLIENT))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic dXNlcg==", "token"])
def test_without_a_bearer_token_no_review_is_requested(jump: Jump, header: str) -> None:
    """The request is refused at once."""
    reviewer = Reviewer()
    with pytest.raises(NotAuthenticatedError):
        jump(ReportAuthenticator(reviewer, Pods()).pod_of(header, KEY, CLIENT))
    assert reviewer.reviews == 0


@pytest.mark.parametrize(
    ("pods", "key"),
    [
        (Pods(), ("team-a", "other")),
        (Pods(), ("team-b", "support")),
        (Pods(phase="Succeeded"), KEY),
        (Pods(phase="Failed"), KEY),
        (Pods(deletionTimestamp=text(at(1))), KEY),
        (Pods(uid="another"), KEY),
    ],
)
def test_a_pod_may_report_about_its_own_object_while_it_runs(jump: Jump, pods: Pods, key: tuple[str, str]) -> None:
    """Not about others, not after its end, not while it terminates."""
    if pods.pod.meta.uid == "another":
        pods.get = lambda uid: None  # type: ignore[method-assign]
    with pytest.raises(NotAllowedError):
        jump(ReportAuthenticator(Reviewer(), pods).pod_of("Bearer token", key, CLIENT))


def test_a_token_review_is_cached_for_a_minute(jump: Jump) -> None:
    """A stage reports every few seconds; a revoked token is still refused soon."""

    async def story() -> None:
        reviewer = Reviewer()
        gatekeeper = ReportAuthenticator(reviewer, Pods())
        for _ in range(5):
            await gatekeeper.pod_of("Bearer token", KEY, CLIENT)
        assert reviewer.reviews == 1
        reviewer.status["authenticated"] = False
        await asyncio.sleep(REMEMBERED_SECONDS)
        with pytest.raises(NotAuthenticatedError):
            await gatekeeper.pod_of("Bearer token", KEY, CLIENT)

    jump(story())


def test_forged_tokens_do_not_flood_the_api_server(jump: Jump) -> None:
    """Concurrent reviews are limited."""

    async def story() -> None:
        reviewer = Reviewer(authenticated=False)
        gatekeeper = ReportAuthenticator(reviewer, Pods())
        tries = [gatekeeper.pod_of(f"Bearer {i}", KEY, f"10.0.0.{i}") for i in range(100)]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert all(isinstance(answer, NotAuthenticatedError) for answer in answers)
        assert reviewer.most_at_once == REVIEWS_AT_ONCE

    jump(story())


class Queue:
    """Takes keys."""

    def add(self, key: tuple[str, str]) -> None:
        """Do nothing."""


def a_report(percent: int, said: datetime | None = None) -> ProgressReport:
    """Return a report with the time of the pod's clock."""
    return ProgressReport(trainer_status=TrainerStatus(progress_percentage=percent, last_updated_time=said))


def test_the_time_of_a_report_is_its_arrival(jump: Jump) -> None:
    """A pod's clock may be wrong by hours."""

    async def story() -> None:
        board = Board(Queue())
        board.post(KEY, "pod", a_report(1, said=at(100_000)), at(7.4))
        latest = board.latest(KEY)
        assert latest is not None
        assert latest.status.last_updated_time == at(7)

    jump(story())


def test_the_newest_report_is_available_at_once(jump: Jump) -> None:
    """The stall timeout does not depend on when progress is written."""

    async def story() -> None:
        board = Board(Queue())
        for percent in range(5):
            board.post(KEY, "pod", a_report(percent), at(percent))
        latest = board.latest(KEY)
        assert latest is not None
        assert latest.status.progress_percentage == 4

    jump(story())


def test_reports_of_a_deleted_object_are_removed(jump: Jump) -> None:
    """The board does not grow with deleted objects."""

    async def story() -> None:
        board = Board(Queue(), Pace(per_second=1))
        for name in "ab":
            board.post(("team-a", name), "pod", a_report(1), at(0))
            board.forget(("team-a", name))
            assert board.latest(("team-a", name)) is None
        assert board.waiting() == 0

    jump(story())

"""The report of train's end, posted by the pod while evaluate runs."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from property.builders import at
from pydantic import ValidationError
from tunemill_api.plain_text import parsed
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report
from tunemill_operator.engine.observe import Progress
from tunemill_operator.progress.board import Board, ProgressReport

KEY = ("team-a", "support")
Jump = Callable[..., Any]


class Queue:
    """Records the keys to reconcile at once."""

    def __init__(self) -> None:
        self.added: list[tuple[str, str]] = []

    def add(self, key: tuple[str, str]) -> None:
        """Record a key."""
        self.added.append(key)

    def add_after(self, key: tuple[str, str], seconds: float) -> None:
        """Record a delayed key."""


def a_body(**parts: Any) -> ProgressReport:
    """Return the body of a post."""
    return parsed(ProgressReport, json.dumps(parts))


def posted(jump: Jump, *posts: tuple[str, ProgressReport]) -> tuple[Progress, Queue]:
    """Return the board and the queue after these posts of pods, a second apart."""
    queue = Queue()

    async def story() -> Progress | None:
        board = Board(queue)
        for second, (pod, body) in enumerate(posts):
            board.post(KEY, pod, body, at(second))
        return board.latest(KEY)

    known = jump(story())
    assert known is not None
    return known, queue


FIGURES = a_body(stage="train", trainerStatus={"progressPercentage": 100})
END = a_body(report=json.loads(a_report(Stage.TRAIN)))


def test_the_end_of_train_is_stored_in_addition_to_the_progress(jump: Jump) -> None:
    """It is not progress of evaluate: the progress and its time stay."""
    known, _ = posted(jump, ("pod", FIGURES), ("pod", END))
    assert known.report
    assert known.report.stage is Stage.TRAIN
    assert known.status
    assert (known.status.progress_percentage, known.status.last_updated_time) == (100, at(0))
    assert known.stage is Stage.TRAIN


def test_later_progress_keeps_the_end_of_train(jump: Jump) -> None:
    """Evaluate reports from the same pod, every few seconds."""
    known, _ = posted(jump, ("pod", END), ("pod", a_body(stage="evaluate", trainerStatus={"progressPercentage": 3})))
    assert known.report
    assert known.stage is Stage.EVALUATE


def test_a_new_pod_resets_the_stored_reports(jump: Jump) -> None:
    """Reports of its predecessor are not kept."""
    known, _ = posted(jump, ("one", END), ("two", FIGURES))
    assert (known.pod, known.report) == ("two", None)


def test_the_end_of_train_is_written_at_once_and_once(jump: Jump) -> None:
    """It is posted every minute, in case the operator restarts; only the first one causes a reconcile."""
    _, queue = posted(jump, ("pod", END))
    assert queue.added == [KEY]
    _, queue = posted(jump, ("pod", END), ("pod", END), ("pod", END))
    assert queue.added == [KEY]


@pytest.mark.parametrize("stage", ["", "pretrain"])
def test_a_custom_trainer_need_not_name_its_stage(jump: Jump, stage: str) -> None:
    """Transformers' own callback posts trainerStatus only."""
    known, _ = posted(jump, ("pod", a_body(stage=stage, trainerStatus={"progressPercentage": 7})))
    assert known.stage is None
    assert known.status


@pytest.mark.parametrize("body", [{}, {"stage": "train"}, {"report": {"stage": "train"}}, {"report": "done"}])
def test_an_empty_post_is_rejected(body: dict[str, Any]) -> None:
    """With status 400."""
    with pytest.raises(ValidationError):
        a_body(**body)

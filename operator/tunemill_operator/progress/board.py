"""The newest progress report of every object, in memory, and whose turn it is to be written to the status.

Every look at an object sees its newest report: whether a stage is silent is judged by that. What is limited is how
often a status is written when nothing but progress has changed.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import StatusModel, TrainerStatus

from tunemill_operator.engine.objects import check_figures
from tunemill_operator.engine.observe import Progress
from tunemill_operator.progress.turns import Pace, Turns
from tunemill_operator.runtime.cache import Key

LONGEST_ETA_SECONDS: Final = 10 * 365 * 24 * 3600
"""The longest remaining time that is believed. The API server takes no status with a number of more than 64 bits."""


class ProgressReport(StatusModel):
    """What a stage posts: the body of Kubeflow's status protocol (KEP-2779), with two fields of our own."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    trainer_status: TrainerStatus | None = None
    """The figures."""
    stage: str = Field(default="", max_length=64)
    """The stage that they are of; empty when the stage is not of our making."""
    report: StageReport | None = None
    """The report of a stage that has ended, while the next one works in the same container."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.trainer_status is None and self.report is None:
            raise ValueError("trainerStatus or report is needed")
        if self.report:
            check_figures(self.report)
        eta = self.trainer_status.estimated_remaining_seconds if self.trainer_status else None
        if eta is not None and eta > LONGEST_ETA_SECONDS:
            raise ValueError(f"trainerStatus.estimatedRemainingSeconds must be at most {LONGEST_ETA_SECONDS}")
        return self

    def after(self, before: Progress | None, pod: str, now: datetime) -> Progress:
        """Return what the pod has reported in all; `before` is what was known.

        A report is no sign of life of the stage that works: it changes neither its figures nor their time.
        """
        known = before if before and before.pod == pod else Progress(pod, None)
        if self.report:
            known = replace(known, report=self.report)
        if self.trainer_status is None:
            return known
        status = self.trainer_status.model_copy(update={"last_updated_time": now.replace(microsecond=0)})
        return replace(known, status=status, stage=Stage(self.stage) if self.stage in set(Stage) else None)


class Queue(Protocol):
    """Where an object is put whose progress is to be written."""

    def add(self, key: Key) -> None:
        """Have the key worked on at once."""


class Board:
    """Keeps the newest report of every object and has it written in turn."""

    def __init__(self, queue: Queue, pace: Pace | None = None) -> None:
        self._queue = queue
        self._latest: dict[Key, Progress] = {}
        self._turns = Turns(pace or Pace(), queue.add)

    def post(self, key: Key, pod: str, report: ProgressReport, now: datetime) -> None:
        """Take in a report of the pod with this uid. The time that counts is the operator's: pods' clocks differ."""
        before = self._latest.get(key)
        latest = self._latest[key] = report.after(before, pod, now)
        if latest.report and latest.report != (before.report if before else None):
            self._queue.add(key)  # a stage has ended, which is more than progress
        if report.trainer_status is not None:
            self._turns.wait(key)

    def latest(self, key: Key) -> Progress | None:
        """Return the newest report about the object."""
        return self._latest.get(key)

    @contextlib.contextmanager
    def turn(self, key: Key) -> Iterator[bool]:
        """Yield whether it is the object's turn to be written for progress alone; it is over with the context."""
        begun = self._turns.begin(key)
        try:
            yield begun
        finally:
            if begun:
                self._turns.end(key)

    def wait_for_turn(self, key: Key) -> None:
        """Have the object looked at again when it is its turn."""
        self._turns.wait(key)

    def waiting(self) -> int:
        """Return how many objects wait for their turn."""
        return len(self._turns)

    def forget(self, key: Key) -> None:
        """Drop what is known about an object that is gone."""
        self._latest.pop(key, None)
        self._turns.forget(key)

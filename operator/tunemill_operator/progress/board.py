"""The latest progress report of every object in memory, and limits on how often progress is written to the status.

Every reconcile uses the latest report, for example to detect a stage without progress. Only status writes for progress
alone are limited.
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
"""Maximum accepted remaining time. The API server rejects a status with a number of more than 64 bits."""


class ProgressReport(StatusModel):
    """Body of a progress report: that of Kubeflow's status protocol (KEP-2779), with two additional fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    trainer_status: TrainerStatus | None = None
    """The progress."""
    stage: str = Field(default="", max_length=64)
    """Stage of the progress. Empty for custom images."""
    report: StageReport | None = None
    """Report of a finished stage, while the next one runs in the same container."""

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.trainer_status is None and self.report is None:
            raise ValueError("trainerStatus or report is needed")
        if self.report:
            check_figures(self.report)
        eta = self.trainer_status.estimated_remaining_seconds if self.trainer_status else None
        if eta is not None and eta > LONGEST_ETA_SECONDS:
            raise ValueError(f"trainerStatus.estimatedRemainingSeconds must be at most {LONGEST_ETA_SECONDS}")
        return self

    def after(self, before: Progress | None, pod: str, now: datetime) -> Progress:
        """Return the pod's progress after this report; `before` is the previous state.

        The report of a finished stage does not change the progress of the running stage or its time.
        """
        known = before if before and before.pod == pod else Progress(pod, None)
        if self.report:
            known = replace(known, report=self.report)
        if self.trainer_status is None:
            return known
        status = self.trainer_status.model_copy(update={"last_updated_time": now.replace(microsecond=0)})
        return replace(known, status=status, stage=Stage(self.stage) if self.stage in set(Stage) else None)


class Queue(Protocol):
    """Receives the objects whose progress should be written."""

    def add(self, key: Key) -> None:
        """Reconcile the object with this key as soon as possible."""


class Board:
    """Keeps the latest report of every object, and schedules its writes."""

    def __init__(self, queue: Queue, pace: Pace | None = None) -> None:
        self._queue = queue
        self._latest: dict[Key, Progress] = {}
        self._turns = Turns(pace or Pace(), queue.add)

    def post(self, key: Key, pod: str, report: ProgressReport, now: datetime) -> None:
        """Store a report of the pod with this uid. `now` is the operator's time, because clocks of pods differ."""
        before = self._latest.get(key)
        latest = self._latest[key] = report.after(before, pod, now)
        if latest.report and latest.report != (before.report if before else None):
            self._queue.add(key)  # a stage has ended, so the write is not limited
        if report.trainer_status is not None:
            self._turns.wait(key)

    def latest(self, key: Key) -> Progress | None:
        """Return the latest report about the object."""
        return self._latest.get(key)

    @contextlib.contextmanager
    def turn(self, key: Key) -> Iterator[bool]:
        """Yield whether the object may be written for progress alone, while the context lasts."""
        begun = self._turns.begin(key)
        try:
            yield begun
        finally:
            if begun:
                self._turns.end(key)

    def wait_for_turn(self, key: Key) -> None:
        """Reconcile the object again when it may be written for progress alone."""
        self._turns.wait(key)

    def waiting(self) -> int:
        """Return the number of objects that wait for their turn."""
        return len(self._turns)

    def forget(self, key: Key) -> None:
        """Remove the reports about a deleted object."""
        self._latest.pop(key, None)
        self._turns.forget(key)

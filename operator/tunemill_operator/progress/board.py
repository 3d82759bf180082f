"""The newest progress report of every object, in memory: a report is worth a status write only every few seconds."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import StatusModel, TrainerStatus

from tunemill_operator.engine.observe import Progress
from tunemill_operator.runtime.cache import Key

WRITE_SECONDS = 3.0
"""At most one status write in this time for one object's progress."""


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

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key worked on after so many seconds."""


class Board:
    """Keeps the newest report of every object and has it written now and then."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._latest: dict[Key, Progress] = {}
        self._asked: dict[Key, datetime] = {}

    def post(self, key: Key, pod: str, report: ProgressReport, now: datetime) -> None:
        """Take in a report of the pod with this uid. The time that counts is the operator's: pods' clocks differ."""
        before = self._latest.get(key)
        latest = self._latest[key] = report.after(before, pod, now)
        if latest.report and latest.report != (before.report if before else None):
            self._queue.add(key)  # a stage has ended, which is more than progress
        if report.trainer_status is None:
            return
        asked = self._asked.get(key)
        waited = (now - asked).total_seconds() if asked and before and before.pod == pod else WRITE_SECONDS
        if waited >= WRITE_SECONDS:
            self._asked[key] = now
            self._queue.add(key)
        else:
            self._queue.add_after(key, WRITE_SECONDS - waited)

    def latest(self, key: Key) -> Progress | None:
        """Return the newest report about the object."""
        return self._latest.get(key)

    def forget(self, key: Key) -> None:
        """Drop what is known about an object that is gone."""
        self._latest.pop(key, None)
        self._asked.pop(key, None)

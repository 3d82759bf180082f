"""The newest progress report of every object, in memory: a report is worth a status write only every few seconds."""

from datetime import datetime
from typing import Protocol

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from tunemill_api.status import StatusModel, TrainerStatus

from tunemill_operator.engine.observe import Progress
from tunemill_operator.runtime.cache import Key

WRITE_SECONDS = 3.0
"""At most one status write in this time for one object's progress."""


class ProgressReport(StatusModel):
    """What a stage posts: the body of Kubeflow's status protocol (KEP-2779)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    trainer_status: TrainerStatus = Field()
    """The figures."""


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
        status = report.trainer_status.model_copy(update={"last_updated_time": now.replace(microsecond=0)})
        before = self._latest.get(key)
        self._latest[key] = Progress(pod, status)
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

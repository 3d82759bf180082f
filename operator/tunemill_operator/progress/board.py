"""The newest progress report of every object, in memory, and whose turn it is to be written to the status.

Every look at an object sees its newest report: whether a stage is silent is judged by that. What is limited is how
often a status is written when nothing but progress has changed.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Protocol

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from tunemill_api.status import StatusModel, TrainerStatus

from tunemill_operator.engine.observe import Progress
from tunemill_operator.progress.turns import Pace, Turns
from tunemill_operator.runtime.cache import Key


class ProgressReport(StatusModel):
    """What a stage posts: the body of Kubeflow's status protocol (KEP-2779)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    trainer_status: TrainerStatus = Field()
    """The figures."""


class Queue(Protocol):
    """Where an object is put whose progress is to be written."""

    def add(self, key: Key) -> None:
        """Have the key worked on at once."""


class Board:
    """Keeps the newest report of every object and has it written in turn."""

    def __init__(self, queue: Queue, pace: Pace | None = None) -> None:
        self._latest: dict[Key, Progress] = {}
        self._turns = Turns(pace or Pace(), queue.add)

    def post(self, key: Key, pod: str, report: ProgressReport, now: datetime) -> None:
        """Take in a report of the pod with this uid. The time that counts is the operator's: pods' clocks differ."""
        status = report.trainer_status.model_copy(update={"last_updated_time": now.replace(microsecond=0)})
        self._latest[key] = Progress(pod, status)
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

"""Data about one reconcile, for log lines and traces."""

import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, StageState

from tunemill_operator.runtime.cache import Key


@dataclass(frozen=True)
class Request:
    """A request to the API server."""

    method: str
    path: str
    code: int
    """HTTP status. 0 without an answer."""
    started: float
    """Unix time in seconds."""
    seconds: float


@dataclass
class Reconciliation:
    """A key in progress. Fields that are not known yet are empty."""

    key: Key
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    uid: str = ""
    run: str = ""
    stage: str = ""
    phase: str = ""
    begins_run: bool = False
    """Whether the written status started a new run."""
    started: float = field(default_factory=time.time)
    """Unix time in seconds."""
    requests: list[Request] = field(default_factory=list)
    """The requests, if tracing is enabled."""

    def at(self, status: FineTuneStatus) -> None:
        """Set the run, stage and phase from a status."""
        self.run = status.run.id if status.run else ""
        self.phase = status.phase or ""
        self.stage = _stage(status)


current: ContextVar[Reconciliation | None] = ContextVar("reconciliation", default=None)
"""The reconcile of the current worker."""


def _stage(status: FineTuneStatus) -> str:
    if status.failure:
        return status.failure.stage
    unfinished = [entry.name for entry in status.stages if entry.state is not StageState.SUCCEEDED]
    # An object without a status starts with prepare. The last stage of a finished one is publish.
    return unfinished[0] if unfinished else (Stage.PUBLISH if status.stages else Stage.PREPARE).value

"""One reconcile, for those who tell of it: log lines and traces."""

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
    """HTTP status, 0 without an answer."""
    started: float
    """Seconds since the epoch."""
    seconds: float


@dataclass
class Reconciliation:
    """A key that a worker has taken up; what is not known yet is empty."""

    key: Key
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    uid: str = ""
    run: str = ""
    stage: str = ""
    phase: str = ""
    begins_run: bool = False
    """Whether the status that names a new run was written."""
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""
    requests: list[Request] = field(default_factory=list)
    """Filled when somebody traces."""

    def at(self, status: FineTuneStatus) -> None:
        """Take in which run and which stage it is about."""
        self.run = status.run.id if status.run else ""
        self.phase = status.phase or ""
        self.stage = _stage(status)


current: ContextVar[Reconciliation | None] = ContextVar("reconciliation", default=None)
"""What the present worker is at."""


def _stage(status: FineTuneStatus) -> str:
    if status.failure:
        return status.failure.stage
    unfinished = [entry.name for entry in status.stages if entry.state is not StageState.SUCCEEDED]
    # An object without a status begins with prepare; one that is done was last at publish.
    return unfinished[0] if unfinished else (Stage.PUBLISH if status.stages else Stage.PREPARE).value

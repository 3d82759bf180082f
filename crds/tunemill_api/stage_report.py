"""What a stage tells the operator at its end: the StageReport, a termination message of at most 4 KiB."""

from datetime import datetime
from enum import StrEnum

from tunemill_api.base import ApiModel
from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.status import EvaluationFacts, PreparedFacts, PublishedFacts, TrainedFacts


class Stage(StrEnum):
    """The four stages, in their order."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class StageFailure(ApiModel):
    """Why a stage failed."""

    reason: Reason
    """One of the taxonomy."""
    message: str
    """What was expected, what was found and where. Never holds the value of a Secret."""
    remedy: str
    """What to change, in one sentence."""


class StageReport(ApiModel):
    """The end of one stage. Exactly one of the facts, or `failure`, is set."""

    stage: Stage
    """Which stage ended."""
    key: str = ""
    """The key of the output; empty when the stage failed before it was known."""
    executed: bool = False
    """False when the output was already in the workspace and nothing had to be done."""
    started_at: datetime
    """When the stage began to work."""
    finished_at: datetime
    """When it ended."""
    prepared: PreparedFacts | None = None
    """Of prepare."""
    trained: TrainedFacts | None = None
    """Of train."""
    evaluation: EvaluationFacts | None = None
    """Of evaluate."""
    published: PublishedFacts | None = None
    """Of publish."""
    failure: StageFailure | None = None
    """Set when the stage did not reach its end."""

    def termination_message(self) -> str:
        """Return the report as JSON of at most 4096 bytes; a message that is too long loses its middle."""
        text = self._json()
        excess = len(text.encode()) - TERMINATION_LOG_BYTES
        if excess > 0 and self.failure is not None:
            return self.model_copy(update={"failure": _shortened(self.failure, excess)}).termination_message()
        return text

    def _json(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_none=True)


def failure_of(reason: Reason, message: str, remedy: str = "") -> StageFailure:
    """Return a failure with the remedy of the taxonomy, unless the caller knows a better one."""
    return StageFailure(reason=reason, message=message, remedy=remedy or FAILURES[reason].remedy)


def _shortened(failure: StageFailure, excess: int) -> StageFailure:
    text = failure.message.encode()
    keep = max(0, len(text) - excess - 16) // 2
    begin, end = text[:keep].decode(errors="ignore"), text[len(text) - keep :].decode(errors="ignore")
    return failure.model_copy(update={"message": f"{begin} … {end}"})

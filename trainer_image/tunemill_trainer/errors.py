"""The exception with which a stage fails: a failure reason, a message and a remedy.

StageError
└── Interrupted    the pod got a request to stop; the stage is resumed later
"""

from tunemill_api.failures import FAILURES, ExitCode, Reason
from tunemill_api.stage_report import StageFailure, failure_of


class StageError(Exception):
    """The stage failed.

    Args:
        reason: the failure reason. It determines the exit code, and thereby whether the stage is retried.
        message: what was expected, what was found, and where, with the field of the spec. Never the value of a Secret.
        remedy: what to change; empty means the general remedy of the reason.
    """

    def __init__(self, reason: Reason, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of the container."""
        return FAILURES[self.reason].exit_code

    @property
    def failure(self) -> StageFailure:
        """The failure for the stage report."""
        return failure_of(self.reason, self.message, self.remedy)


class Interrupted(StageError):  # noqa: N818 - not an error
    """The pod got a request to stop, and the stage stopped within the grace period."""

    def __init__(self, message: str = "the stage was interrupted by a request to stop") -> None:
        super().__init__(Reason.INTERRUPTED, message)

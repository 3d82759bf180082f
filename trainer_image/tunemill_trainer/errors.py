"""The one exception with which a stage ends: a reason of the taxonomy, and a message that a person can act on.

StageError
└── Interrupted    the pod was asked to stop; the stage is taken up again later
"""

from tunemill_api.failures import FAILURES, ExitCode, Reason
from tunemill_api.stage_report import StageFailure, failure_of


class StageError(Exception):
    """The stage cannot reach its end.

    Args:
        reason: one of the taxonomy; decides the exit code and with it whether the stage is tried again.
        message: what was expected, what was found, where, and which field to change. Never the value of a Secret.
        remedy: what to change, where that is known better than the taxonomy's general sentence.
    """

    def __init__(self, reason: Reason, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.remedy = remedy

    @property
    def exit_code(self) -> ExitCode:
        """What the container exits with."""
        return FAILURES[self.reason].exit_code

    @property
    def failure(self) -> StageFailure:
        """The error as the operator reads it."""
        return failure_of(self.reason, self.message, self.remedy)


class Interrupted(StageError):  # noqa: N818 - not an error of anyone
    """The pod was asked to stop, and the stage did in time."""

    def __init__(self, message: str = "the stage was asked to stop before its end") -> None:
        super().__init__(Reason.INTERRUPTED, message)

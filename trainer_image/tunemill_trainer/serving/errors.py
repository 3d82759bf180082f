"""The exception of this package."""

from tunemill_api.failures import ExitCode


class ServingError(Exception):
    """A release cannot be served, an engine ended, or a server did not answer.

    Args:
        message: what was expected, what was found, and what to do.
        code: the exit code of a command.
    """

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code

"""Searches the pattern of a suite in replies, within a time limit: some patterns need exponential time."""

import regex  # type: ignore[import-untyped] # ships no types
from tunemill_api.evaluation import Suite
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError

LIMIT_SECONDS = 10.0
"""The maximum time for one reply. A pattern without nested repetitions needs less than a millisecond."""


class SuitePattern:
    """The compiled pattern of a suite.

    Args:
        suite: a suite with the judge Pattern.

    Raises:
        StageError: InvalidSpec, when the pattern cannot be compiled.
    """

    def __init__(self, suite: Suite) -> None:
        self._field = f"spec.evaluation.suites[{suite.name}].pattern"
        try:
            self._pattern = regex.compile(suite.pattern)
        except regex.error as error:
            raise StageError(Reason.INVALID_SPEC, f"{self._field} is not a regular expression: {error}") from error

    def is_in(self, text: str) -> bool:
        """Return whether the pattern is found in a text.

        Raises:
            StageError: InvalidSpec, when the search takes longer than the limit.
        """
        try:
            return self._pattern.search(text, timeout=LIMIT_SECONDS) is not None
        except TimeoutError as error:
            raise StageError(
                Reason.INVALID_SPEC,
                f"searching {self._field} in a text of {len(text)} characters takes more than {LIMIT_SECONDS:.0f} s",
                "Change the pattern so that it has no repetition within a repetition, such as (a+)+.",
            ) from error

"""What a stage tells the operator at its end: the StageReport, a termination message of at most 4 KiB.

A container that runs several stages leaves one report a line.
"""

from collections.abc import Callable, Iterator, Sequence
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
        return termination_message([self])


def termination_message(reports: Sequence[StageReport]) -> str:
    """Return the reports of a container's stages as JSON Lines of at most 4096 bytes together.

    The message of a failure loses its middle first, then its remedy does. After that the reports lose the URIs, which
    follow from the workspace and the keys; at last the reports of the earliest stages are left out.
    """
    kept = list(reports)
    for smaller in (_with_short_message, _with_short_remedy, _without_uris):
        excess = len(_lines(kept).encode()) - TERMINATION_LOG_BYTES
        kept = [smaller(report, excess) for report in kept] if excess > 0 else kept
    while len(kept) > 1 and len(_lines(kept).encode()) > TERMINATION_LOG_BYTES:
        del kept[0]
    return _lines(kept)


def reports_in(message: str, parse: Callable[[str], StageReport] | None = None) -> Iterator[StageReport]:
    """Yield the reports that a termination message holds: one, or one a line. Everything else in it is passed over.

    Args:
        message: of a container, or what it printed last.
        parse: makes a report of JSON; raises a ValueError for what is none.
    """
    parse = parse or StageReport.model_validate_json
    if "{" not in message:
        return
    # A report of somebody else's making may be one document on several lines. Only "\n" ends a line: JSON leaves the
    # other characters that `str.splitlines` breaks at, such as U+0085 and U+2028, as they are.
    for text in [message] if "\n" not in message.strip() else [message, *message.split("\n")]:
        if not text.lstrip().startswith("{"):
            continue
        try:
            yield parse(text)
        except ValueError:
            continue
        if text is message:
            return


def _lines(reports: Sequence[StageReport]) -> str:
    return "\n".join(report.model_dump_json(by_alias=True, exclude_none=True) for report in reports)


def failure_of(reason: Reason, message: str, remedy: str = "") -> StageFailure:
    """Return a failure with the remedy of the taxonomy, unless the caller knows a better one."""
    return StageFailure(reason=reason, message=message, remedy=remedy or FAILURES[reason].remedy)


def _with_short_message(report: StageReport, excess: int) -> StageReport:
    return _with_failure(report, lambda failure: {"message": _shortened(failure.message, excess)})


def _with_short_remedy(report: StageReport, excess: int) -> StageReport:
    return _with_failure(report, lambda failure: {"remedy": _shortened(failure.remedy, excess)})


def _with_failure(report: StageReport, change: Callable[[StageFailure], dict[str, str]]) -> StageReport:
    if report.failure is None:
        return report
    return report.model_copy(update={"failure": report.failure.model_copy(update=change(report.failure))})


def _without_uris(report: StageReport, _excess: int) -> StageReport:
    if report.trained is not None:
        return report.model_copy(update={"trained": report.trained.model_copy(update={"adapter": ""})})
    if report.evaluation is not None:
        return report.model_copy(update={"evaluation": report.evaluation.model_copy(update={"report": ""})})
    return report


def _shortened(text: str, excess: int) -> str:
    """Return the text without so many bytes of its middle."""
    data = text.encode()
    keep = max(0, len(data) - excess - 16) // 2
    begin, end = data[:keep].decode(errors="ignore"), data[len(data) - keep :].decode(errors="ignore")
    return f"{begin} … {end}"

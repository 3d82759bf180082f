"""The StageReport, which a stage leaves as its termination message of at most 4 KiB.

A container that runs several stages writes one report per line.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from enum import StrEnum

from tunemill_api.base import ApiModel
from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.status import EvaluationFacts, PreparedFacts, PublishedFacts, TrainedFacts


class Stage(StrEnum):
    """The four stages, in order."""

    PREPARE = "prepare"
    TRAIN = "train"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class StageFailure(ApiModel):
    """Why a stage failed."""

    reason: Reason
    """The failure reason."""
    message: str
    """What was expected, what was found and where. Never contains the value of a Secret."""
    remedy: str
    """What to change, in one sentence."""


class StageReport(ApiModel):
    """The result of one stage. Exactly one of the facts, or `failure`, is set."""

    stage: Stage
    """The stage."""
    key: str = ""
    """Key of the output. Empty if the stage failed before it was known."""
    executed: bool = False
    """False if the output was already in the workspace."""
    started_at: datetime
    """When the stage started."""
    finished_at: datetime
    """When the stage finished."""
    prepared: PreparedFacts | None = None
    """Results of prepare."""
    trained: TrainedFacts | None = None
    """Results of train."""
    evaluation: EvaluationFacts | None = None
    """Results of evaluate."""
    published: PublishedFacts | None = None
    """Results of publish."""
    failure: StageFailure | None = None
    """Set if the stage failed."""

    def termination_message(self) -> str:
        """Return the report as JSON of at most 4096 bytes. The middle of a message that is too long is removed."""
        return termination_message([self])


def termination_message(reports: Sequence[StageReport]) -> str:
    """Return the reports of a container's stages as JSON Lines of at most 4096 bytes in total.

    If they are too long, first the middle of the failure message is removed, then that of the remedy, then the URIs,
    which can be computed from the workspace and the keys. At last the reports of the earliest stages are left out.
    """
    kept = list(reports)
    for smaller in (_with_short_message, _with_short_remedy, _without_uris):
        excess = len(_lines(kept).encode()) - TERMINATION_LOG_BYTES
        kept = [smaller(report, excess) for report in kept] if excess > 0 else kept
    while len(kept) > 1 and len(_lines(kept).encode()) > TERMINATION_LOG_BYTES:
        del kept[0]
    return _lines(kept)


def reports_in(message: str, parse: Callable[[str], StageReport] | None = None) -> Iterator[StageReport]:
    """Yield the reports in a termination message: a single one, or one per line. Other content is ignored.

    Args:
        message: termination message of a container, or the end of its log.
        parse: converts JSON to a report. Raises a ValueError if it is not a report.
    """
    parse = parse or StageReport.model_validate_json
    if "{" not in message:
        return
    # A report that another program wrote may be one document on several lines. Split at "\n" only: JSON does not escape
    # the other characters at which `str.splitlines` breaks, such as U+0085 and U+2028.
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
    """Return a failure with the default remedy of its reason, unless `remedy` is given."""
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
    """Return the text with `excess` bytes removed from its middle."""
    data = text.encode()
    keep = max(0, len(data) - excess - 16) // 2
    begin, end = data[:keep].decode(errors="ignore"), data[len(data) - keep :].decode(errors="ignore")
    return f"{begin} … {end}"

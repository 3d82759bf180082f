"""The history of finished runs in the status."""

from datetime import datetime

from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, PastRun, Phase, RunResult, RunStatus

from tunemill_operator.engine.stages import Ledger
from tunemill_operator.engine.status_summary import NOT_BETTER
from tunemill_operator.engine.step import Step

_RESULTS = {Phase.SUCCEEDED: RunResult.SUCCEEDED, Phase.HELD: RunResult.HELD, Phase.FAILED: RunResult.FAILED}


def history_of(
    before: FineTuneStatus, run: RunStatus, step: Step, ledger: Ledger, limit: int, now: datetime
) -> list[PastRun]:
    """Return the newest `limit` finished runs, newest first.

    Each run occurs once. A run that failed, was retried and succeeded is recorded as succeeded.

    Args:
        before: the status that was written last.
        run: the current run.
        step: the result of the rules.
        ledger: the records of the stages.
        limit: maximum number of runs.
        now: the time.
    """
    # Newest last. The API server rejects duplicate ids, so duplicates that another client wrote are removed.
    runs: dict[str, PastRun] = {}
    for entry in reversed(before.history):
        _put(runs, entry)
    if replaced := _replaced(before, run, now):
        _put(runs, replaced)
    ended = _ended(run, step, ledger, now)
    if ended is not None and not _same_end(runs.get(ended.id), ended):
        newest = next(reversed(runs.values()), None)
        if newest and newest.revision == ended.revision and not _has_published(run, ledger):
            # The data was checked again without changes: it is the same publication.
            del runs[newest.id]
            ended = newest.model_copy(update={"id": ended.id})
        _put(runs, ended)
    return list(reversed(runs.values()))[:limit]


def _put(runs: dict[str, PastRun], entry: PastRun) -> None:
    """Add the run as the newest one. It replaces an entry with the same id."""
    runs.pop(entry.id, None)
    runs[entry.id] = entry


def _same_end(known: PastRun | None, ended: PastRun) -> bool:
    """Return whether the run is already recorded with the same result, regardless of the time."""
    return known is not None and known == ended.model_copy(update={"finished": known.finished})


def _replaced(before: FineTuneStatus, run: RunStatus, now: datetime) -> PastRun | None:
    """Return the run of the previous status, if it had started and is replaced by the current one."""
    old = before.run
    if old is None or old.id == run.id or any(entry.id == old.id for entry in before.history):
        return None
    begun = any(entry.started_at and entry.started_at >= old.started_at for entry in before.stages)
    return PastRun(id=old.id, result=RunResult.REPLACED, finished=now) if begun else None


def _has_published(run: RunStatus, ledger: Ledger) -> bool:
    began = ledger.entries[Stage.PUBLISH].started_at
    return not ledger.done(Stage.PUBLISH) or began is None or began >= run.started_at


def _ended(run: RunStatus, step: Step, ledger: Ledger, now: datetime) -> PastRun | None:
    summary = step.summary
    if not step.has_ended:
        return None
    evaluation = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    published = ledger.facts.published if ledger.done(Stage.PUBLISH) else None
    return PastRun(
        id=run.id,
        result=RunResult.NOT_BETTER if summary.reason == NOT_BETTER else _RESULTS[summary.phase],
        reason=str(summary.failure.reason) if summary.failure else "",
        finished=now,
        metrics={metric.name: metric.tuned for metric in evaluation.metrics if metric.tuned} if evaluation else {},
        revision=published.revision if published else "",
    )

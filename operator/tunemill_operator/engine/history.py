"""Keeps in the status how the runs of an object ended."""

from datetime import datetime

from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, PastRun, Phase, RunResult, RunStatus

from tunemill_operator.engine.situation import NOT_BETTER
from tunemill_operator.engine.stages import Ledger
from tunemill_operator.engine.step import Step

_RESULTS = {Phase.SUCCEEDED: RunResult.SUCCEEDED, Phase.HELD: RunResult.HELD, Phase.FAILED: RunResult.FAILED}


def history_of(
    before: FineTuneStatus, run: RunStatus, step: Step, ledger: Ledger, limit: int, now: datetime
) -> list[PastRun]:
    """Return the newest `limit` runs that have ended, the newest first.

    A run stands in it once: when it fails, is tried again and succeeds, it has succeeded.

    Args:
        before: the status that was written last.
        run: the present run.
        step: what was concluded about it.
        ledger: what is recorded about its stages.
        limit: how many runs are kept.
        now: the time.
    """
    # The newest comes last here. The API server refuses a list with an id twice, so that no other writer's may stay.
    runs: dict[str, PastRun] = {}
    for entry in reversed(before.history):
        _put(runs, entry)
    if replaced := _replaced(before, run, now):
        _put(runs, replaced)
    ended = _ended(run, step, ledger, now)
    if ended is not None and not _same_end(runs.get(ended.id), ended):
        newest = next(reversed(runs.values()), None)
        if newest and newest.revision == ended.revision and not _has_published(run, ledger):
            # The data was looked at again, and nothing had changed: it is the same publication.
            del runs[newest.id]
            ended = newest.model_copy(update={"id": ended.id})
        _put(runs, ended)
    return list(reversed(runs.values()))[:limit]


def _put(runs: dict[str, PastRun], entry: PastRun) -> None:
    """Make the run the newest one, in place of what is known under its id."""
    runs.pop(entry.id, None)
    runs[entry.id] = entry


def _same_end(known: PastRun | None, ended: PastRun) -> bool:
    """Tell whether a run is known to have ended just so, at whatever time."""
    return known is not None and known == ended.model_copy(update={"finished": known.finished})


def _replaced(before: FineTuneStatus, run: RunStatus, now: datetime) -> PastRun | None:
    """Return the run of the status before, if it had begun to work and is given up for this one."""
    old = before.run
    if old is None or old.id == run.id or any(entry.id == old.id for entry in before.history):
        return None
    begun = any(entry.started_at and entry.started_at >= old.started_at for entry in before.stages)
    return PastRun(id=old.id, result=RunResult.REPLACED, finished=now) if begun else None


def _has_published(run: RunStatus, ledger: Ledger) -> bool:
    began = ledger.entries[Stage.PUBLISH].started_at
    return not ledger.done(Stage.PUBLISH) or began is None or began >= run.started_at


def _ended(run: RunStatus, step: Step, ledger: Ledger, now: datetime) -> PastRun | None:
    situation = step.situation
    if not step.is_at_rest:
        return None
    evaluation = ledger.facts.evaluation if ledger.done(Stage.EVALUATE) else None
    published = ledger.facts.published if ledger.done(Stage.PUBLISH) else None
    return PastRun(
        id=run.id,
        result=RunResult.NOT_BETTER if situation.reason == NOT_BETTER else _RESULTS[situation.phase],
        reason=str(situation.failure.reason) if situation.failure else "",
        finished=now,
        metrics={metric.name: metric.tuned for metric in evaluation.metrics if metric.tuned} if evaluation else {},
        revision=published.revision if published else "",
    )

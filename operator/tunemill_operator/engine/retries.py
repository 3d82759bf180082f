"""Counts what the operator itself does again, so that spec.retry.limit ends every loop."""

from collections.abc import Container
from dataclasses import replace

from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, StageState, StageStatus

from tunemill_operator.engine.stages import Ledger, Work


def with_entry(ledger: Ledger, entry: StageStatus) -> Ledger:
    """Return the ledger with this entry in place of the stage's."""
    return replace(ledger, entries={**ledger.entries, Stage(entry.name): entry})


def requested_again(ledger: Ledger, jobs: Container[str]) -> Ledger:
    """Return the ledger after an edit or a request, which begin the counts anew.

    Args:
        ledger: what is recorded.
        jobs: the names of the Jobs that are there. That others are not counts no longer either.
    """
    for entry in ledger.entries.values():
        update: dict[str, object] = {"recreations": 0, "retries": 0, "evictions": 0}
        if entry.state is not StageState.SUCCEEDED and entry.job not in jobs:
            update["job"] = ""
        ledger = with_entry(ledger, entry.model_copy(update=update))
    return ledger


def first_open(ledger: Ledger, work: Work) -> StageStatus:
    """Return the entry of the work's first stage that is not done: what is done again counts there."""
    return ledger.entries[next(stage for stage in work.stages if not ledger.done(stage))]


def recreations(ledger: Ledger, work: Work) -> int:
    """Return how many Jobs of this work were created again because the one before was lost."""
    return sum(ledger.entries[stage].recreations for stage in work.stages)


def retries(ledger: Ledger, work: Work) -> int:
    """Return how many failed pods of this work the operator replaced together with their Job."""
    return sum(ledger.entries[stage].retries for stage in work.stages)


def with_recreation(ledger: Ledger, work: Work) -> Ledger:
    """Return the ledger with one more Job of this work that is created again."""
    entry = first_open(ledger, work)
    return with_entry(ledger, entry.model_copy(update={"recreations": entry.recreations + 1}))


def with_retry(ledger: Ledger, entry: StageStatus) -> Ledger:
    """Return the ledger with one more failed pod of the stage for which its Job is replaced."""
    update = {"retries": entry.retries + 1, "cut_short": CutShort.FAILED}
    return with_entry(ledger, entry.model_copy(update=update))


def with_job(ledger: Ledger, work: Work, name: str) -> Ledger:
    """Return the ledger after which this Job works on what is open of the work; empty after the operator deleted it.

    A Job that is recorded and no longer there was deleted by somebody else.
    """
    for stage in work.stages:
        if not ledger.done(stage):
            ledger = with_entry(ledger, ledger.entries[stage].model_copy(update={"job": name}))
    return ledger


def lost_job(ledger: Ledger, work: Work, name: str) -> bool:
    """Tell whether the Job, which is not there, was recorded: somebody else has deleted it."""
    return any(ledger.entries[stage].job == name for stage in work.stages if not ledger.done(stage))

"""Counts what the operator itself retries, so that spec.retry.limit ends every loop."""

from collections.abc import Container
from dataclasses import replace

from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, StageState, StageStatus

from tunemill_operator.engine.stages import Ledger, Work


def with_entry(ledger: Ledger, entry: StageStatus) -> Ledger:
    """Return the ledger with this record of a stage."""
    return replace(ledger, entries={**ledger.entries, Stage(entry.name): entry})


def requested_again(ledger: Ledger, jobs: Container[str]) -> Ledger:
    """Return the ledger after an edit or a request, which reset the counters.

    Args:
        ledger: the records of the stages.
        jobs: the names of the existing Jobs. Records of other Jobs are removed, so that they do not count as deleted.
    """
    for entry in ledger.entries.values():
        update: dict[str, object] = {"recreations": 0, "retries": 0, "evictions": 0, "peer_losses": 0}
        update |= {"start_timeouts": 0, "next_start": None}
        if entry.state is not StageState.SUCCEEDED and entry.job not in jobs:
            update["job"] = ""
        ledger = with_entry(ledger, entry.model_copy(update=update))
    return ledger


def first_open(ledger: Ledger, work: Work) -> StageStatus:
    """Return the record of the first stage of the work that is not done. Retries are counted there."""
    return ledger.entries[next(stage for stage in work.stages if not ledger.done(stage))]


def recreations(ledger: Ledger, work: Work) -> int:
    """Return the number of Jobs of this work that were created again because the previous one was lost."""
    return sum(ledger.entries[stage].recreations for stage in work.stages)


def retries(ledger: Ledger, work: Work) -> int:
    """Return the number of failed pods of this work for which the operator replaced the Job."""
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
    """Return the ledger with this Job for the unfinished stages of the work. Empty after the operator deleted the Job.

    A recorded Job that does not exist was deleted by another client.
    """
    for stage in work.stages:
        if not ledger.done(stage):
            ledger = with_entry(ledger, ledger.entries[stage].model_copy(update={"job": name}))
    return ledger


def job_was_deleted(ledger: Ledger, work: Work, name: str) -> bool:
    """Return whether the Job, which does not exist, was recorded. If so, another client has deleted it."""
    return any(ledger.entries[stage].job == name for stage in work.stages if not ledger.done(stage))

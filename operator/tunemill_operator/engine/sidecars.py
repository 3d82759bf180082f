"""Ends Jobs whose stages have ended while a sidecar keeps their pod running.

A service mesh or a log agent that an admission policy adds to a pod does not stop with the stage. The pod then never
succeeds or fails, so that the Job controller neither ends the Job nor tries again: the operator does both.
"""

from dataclasses import replace
from datetime import timedelta

from tunemill_api.failures import FINAL_EXIT_CODES, Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, StageState

from tunemill_operator.engine import failures
from tunemill_operator.engine.attempts import ON_GPU
from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Container, Job
from tunemill_operator.engine.observe import owned
from tunemill_operator.engine.retries import retries, with_retry
from tunemill_operator.engine.situation import Situation, phase_before
from tunemill_operator.engine.step import Step, stalled

ENDS_WITHIN = timedelta(seconds=10)
"""A pod without a lasting sidecar ends so soon after its stages, and its Job with it."""
AT_ONCE = timedelta(seconds=1)
"""The status is written first. Then the operator looks again, as its own write is no event for it."""


def lasting(case: Case) -> dict[str, timedelta]:
    """Return the Jobs by name of which every stage has succeeded and a pod still runs, with the time left to each.

    A Job is to be deleted when its time is over. It is not over before the status holds what the stages reported.
    """
    found = {}
    for work in case.ledger.works():
        job = case.observed.job(work.job_name(case.finetune.meta.name))
        if job is None or job.finished or job.meta.deleting or not owned(job, case.finetune):
            continue
        if not all(case.ledger.done(stage) for stage in work.stages):
            continue
        if all(pod.terminal for pod in case.observed.pods_of(job)):
            continue
        entries = case.finetune.status.stages
        recorded = {(entry.name, entry.key) for entry in entries if entry.state is StageState.SUCCEEDED}
        is_recorded = all((stage, case.ledger.wanted[stage]) in recorded for stage in work.stages)
        found[job.meta.name] = _time_left(case, job) if is_recorded else max(_time_left(case, job), AT_ONCE)
    return found


def time_to_end(case: Case) -> timedelta:
    """Return how long the due Job, in which nothing is left to do, may take to end by itself; 0 when that is over."""
    return _time_left(case, case.job) if case.job and case.pods else timedelta(0)


def failed_stage(case: Case) -> Step | None:
    """A stage that failed in a pod which a sidecar keeps running ends the run, or is tried again by the operator."""
    job, pod = case.job, case.pods[-1] if case.pods else None
    if job is None or job.finished or job.meta.deleting or pod is None or pod.terminal or pod.meta.deleting:
        return None
    container, cause = pod.failed_stage, failures.of_pod(pod)
    if container is None or container.ended is None or cause is None:
        return None
    if cause.reason is Reason.OUT_OF_MEMORY and container.name in ON_GPU:
        return None  # its Job is replaced by one that computes less at once
    left = _time_left(case, job)
    if container.ended.exit_code in FINAL_EXIT_CODES and case.as_asked and not pod.disrupted:
        return replace(stalled(case, cause), requeue_after=max(left, AT_ONCE))
    message = f"{cause.stage} failed, but a sidecar keeps its pod {pod.meta.name} running: {cause.message}"
    situation = Situation(phase_before(case.work), "Retrying", message)
    return Step(situation, requeue_after=left) if left else _replaced(case, job, container, cause, situation)


def _replaced(case: Case, job: Job, container: Container, cause: Cause, situation: Situation) -> Step:
    """Replace the Job, as the Job controller would replace a failed pod. What is counted is in the status before."""
    entry = case.ledger.entries[Stage(container.name)]
    if entry.cut_short in {CutShort.PREEMPTED, CutShort.EVICTED}:
        return Step(situation, delete=(job,))  # counted as such
    if container.started_at and entry.cut_short is CutShort.FAILED:
        before = next((item for item in case.finetune.status.stages if item.name == entry.name), None)
        is_recorded = before is not None and before.retries == entry.retries
        return Step(situation, delete=(job,) if is_recorded else (), requeue_after=AT_ONCE)
    if retries(case.ledger, case.work) >= case.spec.retry.limit:
        return replace(stalled(case, cause.after_retries()), requeue_after=AT_ONCE)
    ledger = with_retry(case.ledger, entry)
    # A container that never started is not in the status: nothing would tell that its end was counted.
    return Step(situation, delete=() if container.started_at else (job,), ledger=ledger, requeue_after=AT_ONCE)


def _time_left(case: Case, job: Job) -> timedelta:
    ends = [pod.stages_ended_at for pod in case.observed.pods_of(job) if pod.stages_ended_at]
    since = max(ends, default=job.meta.created_at)
    return max(since + ENDS_WITHIN - case.now, timedelta(0))

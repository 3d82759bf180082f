"""Ends Jobs whose stages have ended while a sidecar keeps their pod running.

A service mesh or log agent that an admission policy adds to a pod does not stop with the stage. The pod then neither
succeeds nor fails, so the Job controller neither completes the Job nor retries it. The operator does both.
"""

from dataclasses import replace
from datetime import timedelta

from tunemill_api.failures import FINAL_EXIT_CODES, Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, StageState

from tunemill_operator.engine import failures
from tunemill_operator.engine.attempts import GPU_STAGES
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Container, Job
from tunemill_operator.engine.observe import owned
from tunemill_operator.engine.reconcile_input import DueInput, ReconcileInput
from tunemill_operator.engine.retries import retries, with_retry
from tunemill_operator.engine.status_summary import StatusSummary, phase_before
from tunemill_operator.engine.step import Step, stalled

SIDECAR_TIMEOUT = timedelta(seconds=10)
"""Time within which a pod without such a sidecar ends after its stages, and its Job with it."""
AT_ONCE = timedelta(seconds=1)
"""The status is written first. The operator then reconciles again, as its own write is not an event for it."""


def lasting(inputs: ReconcileInput) -> dict[str, timedelta]:
    """Return the Jobs whose stages have succeeded while a pod still runs, by name, with their remaining time.

    A Job is deleted when its time is over, but not before the results of its stages are in the status.
    """
    found = {}
    for work in inputs.ledger.works():
        job = inputs.observed.job(work.job_name(inputs.finetune.meta.name))
        if job is None or job.finished or job.meta.deleting or not owned(job, inputs.finetune):
            continue
        if not all(inputs.ledger.done(stage) for stage in work.stages):
            continue
        if all(pod.terminal for pod in inputs.observed.pods_of(job)):
            continue
        entries = inputs.finetune.status.stages
        recorded = {(entry.name, entry.key) for entry in entries if entry.state is StageState.SUCCEEDED}
        is_recorded = all((stage, inputs.ledger.wanted[stage]) in recorded for stage in work.stages)
        found[job.meta.name] = _time_left(inputs, job) if is_recorded else max(_time_left(inputs, job), AT_ONCE)
    return found


def time_to_end(inputs: ReconcileInput) -> timedelta:
    """Return how long the Job, whose stages have ended, may still take to end by itself. 0 if the time is over."""
    return _time_left(inputs, inputs.job) if inputs.job and inputs.pods else timedelta(0)


def failed_stage(inputs: DueInput) -> Step | None:
    """If a stage fails in a pod that a sidecar keeps running, end the run or retry the stage."""
    job, pod = inputs.job, inputs.pods[-1] if inputs.pods else None
    if job is None or job.finished or job.meta.deleting or pod is None or pod.terminal or pod.meta.deleting:
        return None
    container, cause = pod.failed_stage, failures.of_pod(pod)
    if container is None or container.ended is None or cause is None:
        return None
    if cause.reason is Reason.OUT_OF_MEMORY and container.name in GPU_STAGES:
        return None  # another rule replaces the Job by one that computes less at once
    left = _time_left(inputs, job)
    if container.ended.exit_code in FINAL_EXIT_CODES and inputs.job_is_current and not pod.disrupted:
        return replace(stalled(inputs, cause), requeue_after=max(left, AT_ONCE))
    message = f"{cause.stage} failed, but a sidecar keeps its pod {pod.meta.name} running: {cause.message}"
    summary = StatusSummary(phase_before(inputs.work), "Retrying", message)
    return Step(summary, requeue_after=left) if left else _replaced(inputs, job, container, cause, summary)


def _replaced(inputs: DueInput, job: Job, container: Container, cause: Cause, summary: StatusSummary) -> Step:
    """Replace the Job, as the Job controller would replace a failed pod. The retry is first written to the status."""
    entry = inputs.ledger.entries[Stage(container.name)]
    if entry.cut_short in {CutShort.PREEMPTED, CutShort.EVICTED, CutShort.PEER_LOST}:
        return Step(summary, delete=(job,))  # has its own counter
    if container.started_at and entry.cut_short is CutShort.FAILED:
        before = next((item for item in inputs.finetune.status.stages if item.name == entry.name), None)
        is_recorded = before is not None and before.retries == entry.retries
        return Step(summary, delete=(job,) if is_recorded else (), requeue_after=AT_ONCE)
    if retries(inputs.ledger, inputs.work) >= inputs.spec.retry.limit:
        return replace(stalled(inputs, cause.after_retries()), requeue_after=AT_ONCE)
    ledger = with_retry(inputs.ledger, entry)
    # A container that never started is not in the status, so the retry cannot be written first.
    return Step(summary, delete=() if container.started_at else (job,), ledger=ledger, requeue_after=AT_ONCE)


def _time_left(inputs: ReconcileInput, job: Job) -> timedelta:
    ends = [pod.stages_ended_at for pod in inputs.observed.pods_of(job) if pod.stages_ended_at]
    since = max(ends, default=job.meta.created_at)
    return max(since + SIDECAR_TIMEOUT - inputs.now, timedelta(0))

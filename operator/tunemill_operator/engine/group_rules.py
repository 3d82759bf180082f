"""Rules for Jobs with several nodes: pods that cannot all start, that lose each other, or that do not end together."""

from datetime import datetime, timedelta

from tunemill_api.failures import Reason
from tunemill_api.scalars import duration_seconds
from tunemill_api.status import Phase

from tunemill_operator.engine import failures
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.groups import started
from tunemill_operator.engine.objects import FIRST, Job, Pod
from tunemill_operator.engine.reconcile_input import DueInput, ReconcileInput
from tunemill_operator.engine.retries import first_open, retries, with_entry
from tunemill_operator.engine.status_summary import StatusSummary, phase_before
from tunemill_operator.engine.step import Step, stalled

FIRST_PAUSE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=30)
"""Pause after pods could not all start. It doubles each time, so that they hold GPUs for a small part of the time."""
_UNREACHABLE = (
    "Check that the network and the NetworkPolicies of the namespace let the pods of the run reach each other on all "
    "ports (docs/how-to/private-networks.md); then set the annotation tunemill.dev/requested-at to a new value."
)


def name_with_dots(inputs: DueInput) -> Step | None:
    """Fail a run on several nodes whose name cannot be part of a host name. A profile may have set the nodes."""
    if inputs.job or inputs.work.label != "train" or inputs.spec.compute.nodes == 1:
        return None
    if "." not in (name := inputs.finetune.meta.name):
        return None
    message = f"metadata.name {name} must have no dots with spec.compute.nodes above 1, as host names contain it"
    return stalled(inputs, Cause(inputs.work.stages[0], Reason.INVALID_SPEC, message))


def peers_lost(inputs: DueInput) -> Step | None:
    """Fail a run whose pods lose each other more often than the retry limit although none of them fails.

    The Job controller would start them again without limit, as it must when one of them is preempted.
    """
    times = sum(inputs.ledger.entries[stage].peer_losses for stage in inputs.work.stages)
    if times <= inputs.spec.retry.limit or not inputs.live:
        return None
    message = f"the pods of Job {inputs.job_name} lost the connection to each other {times} times, and none had failed"
    cause = Cause(first_open(inputs.ledger, inputs.work).name, Reason.PEER_LOST, message, _UNREACHABLE)
    return stalled(inputs, cause, delete=inputs.live)


def half_ended(inputs: DueInput) -> Step | None:
    """Replace a Job of which some pods have succeeded and others start again: they would wait for each other.

    The Job controller does not start an index again that has succeeded.
    """
    job = _group(inputs)
    if job is None or job.suspended:
        return None
    pods = inputs.observed.pods_of(job)
    succeeded = [pod for pod in pods if pod.index != FIRST and pod.phase == "Succeeded"]
    first = next((pod for pod in reversed(pods) if pod.index == FIRST), None)
    if not succeeded or first is None or not (first.phase == "Failed" or _is_later(first, succeeded)):
        return None
    names = ", ".join(pod.meta.name for pod in succeeded)
    message = f"{names} had ended when {first.meta.name} started again"
    if first.phase == "Failed":
        message = f"{names} had ended before {first.meta.name} failed"
    entry, limit = first_open(inputs.ledger, inputs.work), inputs.spec.retry.limit
    if retries(inputs.ledger, inputs.work) >= limit:
        cause = Cause(entry.name, Reason.PEER_LOST, message).after_retries()
        return stalled(inputs, cause, delete=(job,))
    ledger = with_entry(inputs.ledger, entry.model_copy(update={"retries": entry.retries + 1}))
    summary = StatusSummary(phase_before(inputs.work), "Retrying", f"{message}: all pods start again")
    return Step(summary, delete=(job,), ledger=ledger)


def could_not_start(inputs: DueInput) -> Step | None:
    """Remove pods that have held their GPUs for spec.compute.startTimeout while others could not start.

    In a queue, Kueue has reserved the quota of all pods.
    """
    job, left = _group(inputs), time_to_start(inputs)
    if job is None or left is None or left > timedelta(0):
        return None
    entry = first_open(inputs.ledger, inputs.work)
    times = entry.start_timeouts + 1
    next_start = inputs.now + min(FIRST_PAUSE * 2 ** min(times - 1, 10), LONGEST_PAUSE)
    entry = entry.model_copy(update={"start_timeouts": times, "next_start": next_start})
    summary = _waiting(inputs, next_start, times, _why(inputs, job))
    return Step(summary, delete=(job,), ledger=with_entry(inputs.ledger, entry))


def waits_for_next_start(inputs: DueInput) -> Step | None:
    """Create no pods for a while after they could not all start."""
    entry = first_open(inputs.ledger, inputs.work)
    if inputs.job or inputs.spec.compute.nodes == 1 or entry.next_start is None or entry.next_start <= inputs.now:
        return None
    before = next((each for each in inputs.finetune.status.conditions if each.type == "Ready"), None)
    kept = before is not None and before.reason == Reason.UNSCHEDULABLE
    summary = _waiting(inputs, entry.next_start, entry.start_timeouts)
    if kept and before is not None and before.message.startswith(summary.message):
        summary = StatusSummary(summary.phase, summary.reason, before.message)
    return Step(summary, requeue_after=entry.next_start - inputs.now)


def time_to_start(inputs: ReconcileInput) -> timedelta | None:
    """Return how long the pods of the Job may still hold GPUs without starting together. None if they hold none."""
    job, allowed = _group(inputs), duration_seconds(inputs.spec.compute.start_timeout)
    if job is None or job.queue or job.suspended or not allowed:
        return None
    live = [pod for pod in inputs.observed.pods_of(job) if not pod.stages_ended]
    if any(not pod.terminal and any(item.started_at for item in pod.stages) for pod in inputs.pods):
        return None  # an attempt, which has begun
    holding = [pod.scheduled_at or pod.meta.created_at for pod in live if pod.node]
    return min(holding) + timedelta(seconds=allowed) - inputs.now if holding else None


def _group(inputs: ReconcileInput) -> Job | None:
    """Return the active Job, if it has several nodes and is not being deleted."""
    job = inputs.job
    return job if job and job.nodes > 1 and not job.finished and not job.meta.deleting else None


def _waiting(inputs: DueInput, next_start: datetime, times: int, why: str = "") -> StatusSummary:
    again = f"this happened {times} times in a row, and " if times > 1 else ""
    message = (
        f"the pods of Job {inputs.job_name} could not all start within spec.compute.startTimeout "
        f"({inputs.spec.compute.start_timeout}) and were removed, so that they hold no GPUs; {again}they are created "
        f"again at {next_start:%H:%M:%S} UTC"
    )
    return StatusSummary(Phase.QUEUED, Reason.UNSCHEDULABLE, f"{message}: {why}" if why else message)


def _why(inputs: DueInput, job: Job) -> str:
    """Return why a pod of the Job has not started, as far as it is known."""
    if cause := failures.blocking(inputs.spec, inputs.work, job, inputs.observed):
        return cause.message
    return next((pod.unschedulable for pod in inputs.observed.pods_of(job) if pod.unschedulable), "")


def _is_later(first: Pod, succeeded: list[Pod]) -> bool:
    """Return whether the first pod does not belong to the attempt in which others have succeeded."""
    ends = [pod.stages_ended_at for pod in succeeded if pod.stages_ended_at]
    if not ends:
        return False
    start = started(first)
    return start > max(ends) if start else first.meta.created_at > max(ends)

"""Rules that limit a run: running time, GPU hours, time without progress, and retries."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from tunemill_api.failures import Reason
from tunemill_api.scalars import duration_seconds
from tunemill_api.status import CutShort, Phase

from tunemill_operator.engine import bad_nodes, failures, sidecars
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Pod
from tunemill_operator.engine.reconcile_input import DueInput, ReconcileInput
from tunemill_operator.engine.retries import retries, with_entry
from tunemill_operator.engine.status_summary import StatusSummary, phase_before, running_summary
from tunemill_operator.engine.step import Step, stalled

AVOIDED_FOR = timedelta(minutes=10)
"""Time that a pod waits for another node before suspect nodes are allowed again. An autoscaler may add a node."""


def max_runtime_exceeded(inputs: DueInput) -> Step | None:
    """Stop a run whose stages have run longer than spec.maxRuntime."""
    seconds = inputs.ledger.running_seconds(inputs.now)
    if seconds < duration_seconds(inputs.spec.max_runtime):
        return None
    message = f"the stages have run for {int(seconds)} s, spec.maxRuntime is {inputs.spec.max_runtime}"
    return stalled(inputs, Cause(inputs.ledger.first_open(), Reason.DEADLINE_EXCEEDED, message), delete=inputs.live)


def gpu_hours_spent(inputs: DueInput) -> Step | None:
    """Stop train and evaluate of a run that has used its GPU hours. Stages without GPUs continue."""
    allowed, used = _gpu_seconds_allowed(inputs), inputs.ledger.gpu_seconds(inputs.now)
    if allowed is None or used < allowed or inputs.work.label != "train":
        return None
    message = (
        f"train and evaluate have used {used / 3600:.2f} GPU hours, spec.maxGpuHours is {inputs.spec.max_gpu_hours}"
    )
    return stalled(inputs, Cause(inputs.ledger.first_open(), Reason.GPU_HOURS_SPENT, message), delete=inputs.live)


def reached(inputs: ReconcileInput) -> bool:
    """Return whether the running stage has reached maxRuntime, maxGpuHours or stallTimeout."""
    due = inputs.with_due_work()
    return due is not None and any(rule(due) for rule in (max_runtime_exceeded, gpu_hours_spent, no_progress))


def keep_final_failure(inputs: DueInput) -> Step | None:
    """Keep a final failure until an edit or a request.

    The cause is not determined again, because the Job and pods that showed it may have been deleted.
    """
    failure = inputs.final_failure
    if failure is None or failure.reason == Reason.GATE_NOT_PASSED:  # gates are decided by the figures of the status
        return None
    failure = failure.model_copy(update={"final": True})
    summary = StatusSummary(Phase.FAILED, str(failure.reason), failure.message, failure=failure)
    left = sidecars.time_to_end(inputs) if inputs.live else None
    return Step(summary, delete=() if left else inputs.live, requeue_after=left or None)


def evicted(inputs: DueInput) -> Step | None:
    """Fail a run whose pods are evicted more often than the retry limit: they use more than the node has.

    The Job controller would retry without limit, as it must for preempted pods. Pods that were evicted before they
    started are not in the status, and deleted pods are only there.
    """
    pods = [pod for pod in inputs.observed.pods_of(inputs.job) if pod.reason == "Evicted"] if inputs.job else []
    evictions = sum(inputs.ledger.entries[stage].evictions for stage in inputs.work.stages)
    if max(evictions, _most_of_one_index(pods)) <= inputs.spec.retry.limit or not inputs.live or not pods:
        return None
    cause = failures.of_pod(pods[-1])
    return stalled(inputs, cause, delete=inputs.live) if cause else None


def _most_of_one_index(pods: Sequence[Pod]) -> int:
    return max(Counter(pod.index for pod in pods).values(), default=0)


def out_of_memory(inputs: DueInput) -> Step | None:
    """Fail a run whose pods exceed their memory limit more often than the retry limit.

    Until then, each Job is replaced by one that computes less at once, so the limit of the Job does not apply.
    """
    if inputs.ledger.memory_kills() <= inputs.spec.retry.limit or not inputs.live:
        return None
    causes = [cause for pod in inputs.pods if (cause := failures.of_pod(pod)) and cause.reason is Reason.OUT_OF_MEMORY]
    return stalled(inputs, causes[-1], delete=inputs.live) if causes else None


def bad_node(inputs: DueInput) -> Step | None:
    """Retry a pod that failed because of its node on another node, up to the retry limit.

    The Job controller would choose the same node again, because failing pods leave it free. A later pod that has
    started is left alone.
    """
    job = inputs.job
    failed = [number for number, pod in enumerate(inputs.pods) if failures.on_bad_node(pod)]
    if job is None or job.meta.deleting or not failed or (job.finished and not inputs.job_is_current):
        return None
    pod, later = inputs.pods[failed[-1]], inputs.pods[failed[-1] + 1 :]
    cause = failures.of_pod(pod)
    if cause is None or any(container.started_at for item in later for container in item.stages):
        return None
    stage = next((stage for stage in inputs.work.stages if stage == cause.stage), inputs.work.stages[0])
    entry, ledger = inputs.ledger.entries[stage], inputs.ledger
    message = f"{cause.message} (node {pod.node})"
    summary = StatusSummary(phase_before(inputs.work), str(cause.reason), f"{message}: retrying on another node")
    if bad_nodes.is_counted(entry, pod.meta.name):
        recorded = [item for item in inputs.finetune.status.stages if item.name == stage]
        if not any(bad_nodes.is_counted(item, pod.meta.name) for item in recorded):
            return Step(summary, requeue_after=sidecars.AT_ONCE)
        return Step(summary, delete=(job,))
    ledger = with_entry(ledger, bad_nodes.with_failure(entry, pod.node, str(cause.reason), pod.meta.name))
    if retries(ledger, inputs.work) <= inputs.spec.retry.limit:
        return Step(summary, ledger=ledger, requeue_after=sidecars.AT_ONCE)
    nodes = ", ".join(bad_nodes.suspect_nodes(ledger, inputs.work))
    ended = Cause(cause.stage, cause.reason, f"{cause.message}. Nodes tried: {nodes}", cause.remedy, cause.exit_code)
    return replace(stalled(inputs, ended.after_retries(), ledger=ledger), requeue_after=sidecars.AT_ONCE)


def no_other_node(inputs: DueInput) -> Step | None:
    """Allow the suspect nodes again if the pod has waited too long for another node."""
    job, pod = inputs.job, inputs.pods[-1] if inputs.pods else None
    if job is None or job.meta.deleting or pod is None or not pod.unschedulable or not inputs.live:
        return None
    avoided = bad_nodes.avoided_nodes(inputs.ledger, inputs.work)
    if not avoided or not re.search(r"node affinity|node selector", pod.unschedulable):
        return None
    left = pod.meta.created_at + AVOIDED_FOR - inputs.now
    if left > timedelta(0):
        return Step(running_summary(inputs), requeue_after=left)
    ledger = inputs.ledger
    for stage in inputs.work.stages:
        ledger = with_entry(ledger, bad_nodes.allowed_again(ledger.entries[stage]))
    message = f"no other node can run the pod: {', '.join(avoided)} can be used again"
    return Step(StatusSummary(phase_before(inputs.work), "Retrying", message), delete=(job,), ledger=ledger)


def no_progress(inputs: DueInput) -> Step | None:
    """Stop a stage that has not reported progress for spec.stallTimeout, and retry it."""
    entry, silence, allowed = inputs.ledger.running_stage(), inputs.silence, duration_seconds(inputs.spec.stall_timeout)
    if entry is None or silence is None or not allowed or silence < timedelta(seconds=allowed) or not inputs.live:
        return None
    ledger = inputs.ledger.with_stall(entry)
    silent_for = f"{entry.name} has reported no progress for {int(silence.total_seconds())} s"
    message = f"{silent_for}, spec.stallTimeout is {inputs.spec.stall_timeout}"
    if entry.stalls >= inputs.spec.retry.limit:
        cause = Cause(entry.name, Reason.NO_PROGRESS, f"{message}; {entry.stalls + 1} pods have been stopped for this")
        return stalled(inputs, cause, delete=inputs.live, ledger=ledger)
    summary = StatusSummary(
        phase_before(inputs.work), Reason.NO_PROGRESS, f"{message}: the pod is stopped and the stage retried"
    )
    return Step(summary, delete=inputs.live, ledger=ledger)


def next_limit(inputs: ReconcileInput) -> timedelta | None:
    """Return the time until the running stage reaches its next limit, for which there is no watch event."""
    entry = inputs.ledger.running_stage()
    if entry is None or inputs.due is None:
        return None
    left = [duration_seconds(inputs.spec.max_runtime) - inputs.ledger.running_seconds(inputs.now)]
    allowed = _gpu_seconds_allowed(inputs)
    if allowed is not None and entry.gpus:
        left.append((allowed - inputs.ledger.gpu_seconds(inputs.now)) / entry.gpus)
    patience = duration_seconds(inputs.spec.stall_timeout)
    if patience and inputs.silence is not None and entry.cut_short is not CutShort.NO_PROGRESS:
        left.append(patience - inputs.silence.total_seconds())
    return timedelta(seconds=max(1.0, min(left)))


def _gpu_seconds_allowed(inputs: ReconcileInput) -> float | None:
    return float(inputs.spec.max_gpu_hours) * 3600 if inputs.spec.max_gpu_hours else None

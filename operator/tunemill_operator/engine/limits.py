"""The rules that bound a run: its deadline, its GPU hours, how long it may be silent, how often it may be cut short."""

import re
from dataclasses import replace
from datetime import timedelta

from tunemill_api.failures import Reason
from tunemill_api.scalars import duration_seconds
from tunemill_api.status import CutShort, Phase

from tunemill_operator.engine import bad_nodes, failures, sidecars
from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.retries import retries, with_entry
from tunemill_operator.engine.situation import Situation, at_work, phase_before
from tunemill_operator.engine.step import Step, stalled

AVOIDED_FOR = timedelta(minutes=10)
"""How long a pod waits for another node before it may use the suspect ones again. An autoscaler may add a node."""


def overdue(case: Case) -> Step | None:
    """A run whose stages have worked longer than its deadline is stopped."""
    seconds = case.ledger.running_seconds(case.now)
    if seconds < duration_seconds(case.spec.max_runtime):
        return None
    message = f"the stages have run for {int(seconds)} s, spec.maxRuntime is {case.spec.max_runtime}"
    return stalled(case, Cause(case.ledger.first_open(), Reason.DEADLINE_EXCEEDED, message), delete=case.live)


def gpu_hours_spent(case: Case) -> Step | None:
    """A run that has used its GPU hours gets no GPU any more; what needs none goes on."""
    allowed, used = _gpu_seconds_allowed(case), case.ledger.gpu_seconds(case.now)
    if allowed is None or used < allowed or case.work.label != "train":
        return None
    message = f"train and evaluate have used {used / 3600:.2f} GPU hours, spec.maxGpuHours is {case.spec.max_gpu_hours}"
    return stalled(case, Cause(case.ledger.first_open(), Reason.GPU_HOURS_SPENT, message), delete=case.live)


def reached(case: Case) -> bool:
    """Tell whether what runs has used up its deadline or its GPU hours, or was silent for too long."""
    return case.due is not None and any(rule(case) for rule in (overdue, gpu_hours_spent, silent))


def concluded(case: Case) -> Step | None:
    """A run that has ended with a failure stays so until somebody edits the spec or asks for it again.

    Nothing is concluded anew: the Job and the pods that showed the failure may have been cleaned up since.
    """
    failure = case.final_failure
    if failure is None or failure.reason == Reason.GATE_NOT_PASSED:  # gates are decided by the figures of the status
        return None
    failure = failure.model_copy(update={"final": True})
    situation = Situation(Phase.FAILED, str(failure.reason), failure.message, failure=failure)
    left = sidecars.time_to_end(case) if case.live else None
    return Step(situation, delete=() if left else case.live, requeue_after=left or None)


def evicted(case: Case) -> Step | None:
    """A pod that the kubelet evicts again and again takes more than its node has: the next one would end so too.

    The Job controller would go on for ever, as it has to for preempted pods. Pods that were evicted before they began
    to work on a stage are not in its status, and pods that were cleaned up are only there.
    """
    pods = [pod for pod in case.pods if pod.reason == "Evicted"]
    evictions = sum(case.ledger.entries[stage].evictions for stage in case.work.stages)
    if max(evictions, len(pods)) <= case.spec.retry.limit or not case.live or not pods:
        return None
    cause = failures.of_pod(pods[-1])
    return stalled(case, cause, delete=case.live) if cause else None


def out_of_memory(case: Case) -> Step | None:
    """A pod that needs too much memory again and again, though less each time, is not started any more.

    Until then its Job is replaced by one that computes less at once, so the Job's own limit does not bound it.
    """
    if case.ledger.memory_kills() <= case.spec.retry.limit or not case.live:
        return None
    causes = [cause for pod in case.pods if (cause := failures.of_pod(pod)) and cause.reason is Reason.OUT_OF_MEMORY]
    return stalled(case, causes[-1], delete=case.live) if causes else None


def bad_node(case: Case) -> Step | None:
    """A pod that failed because of its node is followed by one on another node, up to the retry limit.

    The Job controller would put the next pod onto the same node: where every pod fails at once, there is always room.
    A pod that has begun to work meanwhile, on whatever node, is left alone.
    """
    job = case.job
    failed = [number for number, pod in enumerate(case.pods) if failures.on_bad_node(pod)]
    if job is None or job.meta.deleting or not failed or (job.finished and not case.as_asked):
        return None
    pod, later = case.pods[failed[-1]], case.pods[failed[-1] + 1 :]
    cause = failures.of_pod(pod)
    if cause is None or any(container.started_at for item in later for container in item.stages):
        return None
    stage = next((stage for stage in case.work.stages if stage == cause.stage), case.work.stages[0])
    entry, ledger = case.ledger.entries[stage], case.ledger
    message = f"{cause.message} (node {pod.node})"
    situation = Situation(phase_before(case.work), str(cause.reason), f"{message}: retrying on another node")
    if bad_nodes.is_counted(entry, pod.meta.name):
        recorded = [item for item in case.finetune.status.stages if item.name == stage]
        if not any(bad_nodes.is_counted(item, pod.meta.name) for item in recorded):
            return Step(situation, requeue_after=sidecars.AT_ONCE)
        return Step(situation, delete=(job,))
    ledger = with_entry(ledger, bad_nodes.with_failure(entry, pod.node, str(cause.reason), pod.meta.name))
    if retries(ledger, case.work) <= case.spec.retry.limit:
        return Step(situation, ledger=ledger, requeue_after=sidecars.AT_ONCE)
    nodes = ", ".join(bad_nodes.suspect_nodes(ledger, case.work))
    ended = Cause(cause.stage, cause.reason, f"{cause.message}. Nodes tried: {nodes}", cause.remedy, cause.exit_code)
    return replace(stalled(case, ended.after_retries(), ledger=ledger), requeue_after=sidecars.AT_ONCE)


def no_other_node(case: Case) -> Step | None:
    """A pod that only the suspect nodes can take is allowed onto them again after a while."""
    job, pod = case.job, case.pods[-1] if case.pods else None
    if job is None or job.meta.deleting or pod is None or not pod.unschedulable or not case.live:
        return None
    avoided = bad_nodes.avoided_nodes(case.ledger, case.work)
    if not avoided or not re.search(r"node affinity|node selector", pod.unschedulable):
        return None
    left = pod.meta.created_at + AVOIDED_FOR - case.now
    if left > timedelta(0):
        return Step(at_work(case), requeue_after=left)
    ledger = case.ledger
    for stage in case.work.stages:
        ledger = with_entry(ledger, bad_nodes.allowed_again(ledger.entries[stage]))
    message = f"no other node can run the pod: {', '.join(avoided)} can be used again"
    return Step(Situation(phase_before(case.work), "Retrying", message), delete=(job,), ledger=ledger)


def silent(case: Case) -> Step | None:
    """A stage that was heard and then reports nothing for too long is stopped, and started again."""
    entry, silence, allowed = case.ledger.at_work(), case.silence, duration_seconds(case.spec.stall_timeout)
    if entry is None or silence is None or not allowed or silence < timedelta(seconds=allowed) or not case.live:
        return None
    ledger = case.ledger.with_stall(entry)
    silent_for = f"{entry.name} has reported no progress for {int(silence.total_seconds())} s"
    message = f"{silent_for}, spec.stallTimeout is {case.spec.stall_timeout}"
    if entry.stalls >= case.spec.retry.limit:
        cause = Cause(entry.name, Reason.NO_PROGRESS, f"{message}; {entry.stalls + 1} pods have been stopped for this")
        return stalled(case, cause, delete=case.live, ledger=ledger)
    situation = Situation(
        phase_before(case.work), Reason.NO_PROGRESS, f"{message}: the pod is stopped and the stage retried"
    )
    return Step(situation, delete=case.live, ledger=ledger)


def next_limit(case: Case) -> timedelta | None:
    """Return when what runs reaches the first of its limits, which no watch tells; None when it reaches none."""
    entry = case.ledger.at_work()
    if entry is None or case.due is None:
        return None
    left = [duration_seconds(case.spec.max_runtime) - case.ledger.running_seconds(case.now)]
    allowed = _gpu_seconds_allowed(case)
    if allowed is not None and entry.gpus:
        left.append((allowed - case.ledger.gpu_seconds(case.now)) / entry.gpus)
    patience = duration_seconds(case.spec.stall_timeout)
    if patience and case.silence is not None and entry.cut_short is not CutShort.NO_PROGRESS:
        left.append(patience - case.silence.total_seconds())
    return timedelta(seconds=max(1.0, min(left)))


def _gpu_seconds_allowed(case: Case) -> float | None:
    return float(case.spec.max_gpu_hours) * 3600 if case.spec.max_gpu_hours else None

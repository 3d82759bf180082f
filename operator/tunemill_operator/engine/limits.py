"""The rules that bound a run: its deadline, its GPU hours, how long it may be silent, how often it may be cut short."""

from datetime import timedelta

from tunemill_api.failures import Reason
from tunemill_api.scalars import duration_seconds
from tunemill_api.status import CutShort, Phase

from tunemill_operator.engine import failures
from tunemill_operator.engine.case import LASTING, Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.situation import Situation, phase_before
from tunemill_operator.engine.step import Step, stalled


def overdue(case: Case) -> Step | None:
    """A run whose stages have worked longer than its deadline is stopped."""
    seconds = case.ledger.running_seconds(case.now)
    if seconds < duration_seconds(case.spec.max_runtime):
        return None
    message = f"the stages have worked for {int(seconds)} s, spec.maxRuntime allows {case.spec.max_runtime}"
    return stalled(case, Cause(case.ledger.first_open(), Reason.DEADLINE_EXCEEDED, message), delete=case.live)


def gpu_hours_spent(case: Case) -> Step | None:
    """A run that has used its GPU hours gets no GPU any more; what needs none goes on."""
    allowed, used = _gpu_seconds_allowed(case), case.ledger.gpu_seconds(case.now)
    if allowed is None or used < allowed or case.work.label != "train":
        return None
    message = (
        f"train and evaluate have used {used / 3600:.2f} GPU hours, spec.maxGpuHours allows {case.spec.max_gpu_hours}"
    )
    return stalled(case, Cause(case.ledger.first_open(), Reason.GPU_HOURS_SPENT, message), delete=case.live)


def reached(case: Case) -> bool:
    """Tell whether what runs has used up its deadline or its GPU hours, or was silent for too long."""
    return case.due is not None and any(rule(case) for rule in (overdue, gpu_hours_spent, silent))


def concluded(case: Case) -> Step | None:
    """A failure whose Job was deleted stays until somebody asks: what showed it is gone."""
    before = case.finetune.status.failure
    if before is None or before.reason not in LASTING or not case.concluded(before.observed_generation):
        return None
    return Step(Situation(Phase.FAILED, str(before.reason), before.message, failure=before), delete=case.live)


def evicted(case: Case) -> Step | None:
    """A pod that the kubelet evicts again and again takes more than its node has: the next one would end so too.

    The Job controller would go on for ever, as it has to for preempted pods.
    """
    pods = [pod for pod in case.pods if pod.reason == "Evicted"]
    if len(pods) <= case.spec.retry.limit or not case.live:
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


def silent(case: Case) -> Step | None:
    """A stage that was heard and then reports nothing for too long is stopped, and started again."""
    entry, silence, allowed = case.ledger.at_work(), case.silence, duration_seconds(case.spec.stall_timeout)
    if entry is None or silence is None or not allowed or silence < timedelta(seconds=allowed) or not case.live:
        return None
    ledger = case.ledger.with_stall(entry)
    silent_for = f"{entry.name} has reported nothing for {int(silence.total_seconds())} s"
    message = f"{silent_for}, spec.stallTimeout allows {case.spec.stall_timeout}"
    if entry.stalls >= case.spec.retry.limit:
        cause = Cause(entry.name, Reason.NO_PROGRESS, f"{message}; {entry.stalls + 1} pods in all ended so")
        return stalled(case, cause, delete=case.live, ledger=ledger)
    situation = Situation(phase_before(case.work), Reason.NO_PROGRESS, f"{message}: it is stopped and tried again")
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

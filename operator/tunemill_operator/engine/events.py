"""What is told as Kubernetes events: the difference between two statuses, so that nothing is told twice."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunemill_api.status import ConditionType, CutShort, FineTuneStatus

from tunemill_operator.engine.situation import NOT_BETTER

_MILESTONES = (
    ConditionType.PREPARED,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.GATE_PASSED,
    ConditionType.PUBLISHED,
    ConditionType.SUSPENDED,
)

_CUT_SHORT = {
    CutShort.PREEMPTED: "was stopped from outside, which costs no retry; train goes on from its last checkpoint",
    CutShort.NO_PROGRESS: "made no progress for spec.stallTimeout and is stopped",
    CutShort.OUT_OF_MEMORY: "needed more memory than its limit; the next one computes half as much at once",
}


@dataclass(frozen=True)
class Announcement:
    """An event to be recorded once the status that it is about has been written."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def announcements(before: FineTuneStatus, after: FineTuneStatus) -> tuple[Announcement, ...]:
    """Return what happened between the two statuses, in the order of a run."""
    return (
        *_looked_again(before, after),
        *_cut_short(before, after),
        *_admitted(before, after),
        *_reached(before, after),
        *_failed(before, after),
    )


def _looked_again(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    last_time = after.retrain.last_time if after.retrain else None
    if last_time and last_time != (before.retrain.last_time if before.retrain else None):
        yield Announcement("Normal", "Retraining", f"looking at the data again, as scheduled for {last_time:%F %R} UTC")


def _reached(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    old = {condition.type: condition.status for condition in before.conditions}
    for condition in after.conditions:
        if condition.type in _MILESTONES and condition.status == "True" and old.get(condition.type) != "True":
            yield Announcement("Normal", condition.reason, condition.message)
    reasons = {condition.type: condition.reason for condition in before.conditions}
    for condition in after.conditions:
        known = reasons.get(condition.type)
        if condition.type == ConditionType.READY and condition.reason == NOT_BETTER and known != NOT_BETTER:
            yield Announcement("Normal", condition.reason, condition.message)


def _cut_short(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    old = {entry.name: (entry.attempts, entry.cut_short) for entry in before.stages}
    for entry in after.stages:
        if entry.cut_short and old.get(entry.name) != (entry.attempts, entry.cut_short):
            message = f"pod {entry.attempts} of {entry.name} {_CUT_SHORT[entry.cut_short]}"
            yield Announcement("Warning", entry.cut_short.value, message)


def _admitted(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    queue = after.queue
    if queue and queue.cluster_queue and not (before.queue and before.queue.cluster_queue):
        flavors = ", ".join(f"{resource} from {flavor}" for resource, flavor in sorted(queue.flavors.items()))
        told = f"the queue {queue.name} gives quota of the ClusterQueue {queue.cluster_queue}"
        yield Announcement("Normal", "QuotaReserved", f"{told}: {flavors}" if flavors else told)


def _failed(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    failure = after.failure
    if failure and (before.failure is None or before.failure.reason != failure.reason):
        yield Announcement("Warning", str(failure.reason), f"{failure.stage}: {failure.message}. {failure.remedy}")

"""Kubernetes events, computed from the difference of two statuses so that none is recorded twice."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunemill_api.status import ConditionType, CutShort, FineTuneStatus, SuspectNode

from tunemill_operator.engine.status_summary import NOT_BETTER

_MILESTONES = (
    ConditionType.PREPARED,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.GATE_PASSED,
    ConditionType.PUBLISHED,
    ConditionType.SUSPENDED,
)

_CUT_SHORT = {
    CutShort.PREEMPTED: "was preempted, which does not count as a retry; train continues from its last checkpoint",
    CutShort.NO_PROGRESS: "made no progress for spec.stallTimeout and was stopped",
    CutShort.OUT_OF_MEMORY: "exceeded its memory limit; the next pod computes half as much at once",
    CutShort.EVICTED: "was evicted by the kubelet because its node ran out of memory or disk",
    CutShort.PEER_LOST: "lost the connection to the others although none of them failed, which counts as a retry",
    CutShort.POD_FAILED: "failed",
    CutShort.FAILED: "failed, but a sidecar keeps it running; its Job is replaced, which counts as a retry",
}
"""Event message for each reason why a pod ended early. Suspect nodes have a separate event."""


@dataclass(frozen=True)
class Event:
    """An event to record after its status has been written."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def events_between(before: FineTuneStatus, after: FineTuneStatus) -> tuple[Event, ...]:
    """Return the events for the difference of two statuses, in the order of a run."""
    return (
        *_scheduled_check(before, after),
        *_cut_short(before, after),
        *_suspected(before, after),
        *_admitted(before, after),
        *_reached(before, after),
        *_failed(before, after),
    )


def _scheduled_check(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    last_time = after.retrain.last_time if after.retrain else None
    if last_time and last_time != (before.retrain.last_time if before.retrain else None):
        yield Event("Normal", "Retraining", f"checking the data for changes, as scheduled for {last_time:%F %R} UTC")


def _reached(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    old = {condition.type: condition.status for condition in before.conditions}
    for condition in after.conditions:
        if condition.type in _MILESTONES and condition.status == "True" and old.get(condition.type) != "True":
            yield Event("Normal", condition.reason, condition.message)
    reasons = {condition.type: condition.reason for condition in before.conditions}
    for condition in after.conditions:
        known = reasons.get(condition.type)
        if condition.type == ConditionType.READY and condition.reason == NOT_BETTER and known != NOT_BETTER:
            yield Event("Normal", condition.reason, condition.message)


def _cut_short(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    old = {entry.name: (entry.attempts, entry.cut_short) for entry in before.stages}
    for entry in after.stages:
        what = _CUT_SHORT.get(entry.cut_short) if entry.cut_short else None
        if entry.cut_short and what and old.get(entry.name) != (entry.attempts, entry.cut_short):
            who = f"pod {entry.attempts} of {entry.name}"
            if entry.nodes > 1:
                who = f"a pod in attempt {entry.attempts} of {entry.name} on {entry.nodes} nodes"
                what += ". All pods start again together"
            yield Event("Warning", entry.cut_short.value, f"{who} {what}")


def _suspected(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    for stage, node, _ in new_node_failures(before, after):
        message = f"pod {node.pod} of {stage} failed on node {node.name} ({node.reason}): check the node"
        yield Event("Warning", "SuspectNode", f"{message}. Retrying on another node, within spec.retry.limit")


def new_node_failures(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[tuple[str, SuspectNode, int]]:
    """Yield stage, suspect node and number of failures that are not in the status before."""
    known = {(entry.name, node.name): node.failures for entry in before.stages for node in entry.suspect_nodes}
    for entry in after.stages:
        for node in entry.suspect_nodes:
            if (new := node.failures - known.get((entry.name, node.name), 0)) > 0:
                yield entry.name, node, new


def _admitted(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    queue = after.queue
    if queue and queue.cluster_queue and not (before.queue and before.queue.cluster_queue):
        flavors = ", ".join(f"{resource} from flavor {flavor}" for resource, flavor in sorted(queue.flavors.items()))
        message = f"ClusterQueue {queue.cluster_queue} reserved quota for the queue {queue.name}"
        yield Event("Normal", "QuotaReserved", f"{message}: {flavors}" if flavors else message)


def _failed(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Event]:
    failure = after.failure
    if failure and (before.failure is None or before.failure.reason != failure.reason):
        yield Event("Warning", str(failure.reason), f"{failure.stage}: {failure.message}. {failure.remedy}")

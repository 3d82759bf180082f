"""What is told as Kubernetes events: the difference between two statuses, so that nothing is told twice."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunemill_api.status import ConditionType, CutShort, FineTuneStatus

_MILESTONES = (
    ConditionType.PREPARED,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.GATE_PASSED,
    ConditionType.PUBLISHED,
    ConditionType.SUSPENDED,
)

_CUT_SHORT = {
    CutShort.PREEMPTED: "was stopped from outside, which costs no retry; the next one goes on from the last checkpoint",
    CutShort.STALLED: "made no progress for spec.stallTimeout and is stopped",
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
    """Return what happened between the two statuses: milestones, pods that were cut short, a failure that is new."""
    return (*_reached(before, after), *_cut_short(before, after), *_failed(before, after))


def _reached(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    old = {condition.type: condition.status for condition in before.conditions}
    for condition in after.conditions:
        if condition.type in _MILESTONES and condition.status == "True" and old.get(condition.type) != "True":
            yield Announcement("Normal", condition.reason, condition.message)


def _cut_short(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    old = {entry.name: (entry.attempts, entry.cut_short) for entry in before.stages}
    for entry in after.stages:
        if entry.cut_short and old.get(entry.name) != (entry.attempts, entry.cut_short):
            message = f"pod {entry.attempts} of {entry.name} {_CUT_SHORT[entry.cut_short]}"
            yield Announcement("Warning", entry.cut_short.value, message)


def _failed(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    failure = after.failure
    if failure and (before.failure is None or before.failure.reason != failure.reason):
        yield Announcement("Warning", str(failure.reason), f"{failure.stage}: {failure.message}. {failure.remedy}")

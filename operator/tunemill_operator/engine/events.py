"""What is told as Kubernetes events: the difference between two statuses, so that nothing is told twice."""

from collections.abc import Iterator
from dataclasses import dataclass

from tunemill_api.status import ConditionType, FineTuneStatus

_MILESTONES = (
    ConditionType.PREPARED,
    ConditionType.TRAINED,
    ConditionType.EVALUATED,
    ConditionType.GATE_PASSED,
    ConditionType.PUBLISHED,
    ConditionType.SUSPENDED,
)


@dataclass(frozen=True)
class Announcement:
    """An event to be recorded once the status that it is about has been written."""

    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def announcements(before: FineTuneStatus, after: FineTuneStatus) -> tuple[Announcement, ...]:
    """Return what happened between the two statuses: milestones that were reached, and a failure that is new."""
    return (*_reached(before, after), *_failed(before, after))


def _reached(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    old = {condition.type: condition.status for condition in before.conditions}
    for condition in after.conditions:
        if condition.type in _MILESTONES and condition.status == "True" and old.get(condition.type) != "True":
            yield Announcement("Normal", condition.reason, condition.message)


def _failed(before: FineTuneStatus, after: FineTuneStatus) -> Iterator[Announcement]:
    failure = after.failure
    if failure and (before.failure is None or before.failure.reason != failure.reason):
        yield Announcement("Warning", str(failure.reason), f"{failure.stage}: {failure.message}. {failure.remedy}")

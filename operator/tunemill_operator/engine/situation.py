"""How far an object is as a whole, in the words that people read: phase, reason, message."""

from dataclasses import dataclass
from datetime import datetime

from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import FailureStatus, Phase

from tunemill_operator.engine import failures
from tunemill_operator.engine.bad_nodes import avoided_nodes
from tunemill_operator.engine.case import Case
from tunemill_operator.engine.stages import Work

NOT_BETTER = "NotBetter"
"""The reason of a run that ended well and changed nothing: the model that was published before stays."""


@dataclass(frozen=True)
class Situation:
    """What was concluded about the object as a whole."""

    phase: Phase
    reason: str
    """One CamelCase word for the conditions Ready and Reconciling."""
    message: str
    failure: FailureStatus | None = None
    """Set when somebody has to act, or when it is over: Stalled."""
    suspended: bool = False
    """Whether everything has stopped because spec.suspend says so."""
    trouble_since: datetime | None = None
    """Since when trouble that may pass by itself keeps the run from continuing."""


def at_work(case: Case) -> Situation:
    """Return how far the due Job is, which lives and can go on by itself."""
    live = [pod for pod in case.pods if not pod.terminal]
    if unschedulable := next((pod.unschedulable for pod in live if pod.unschedulable), ""):
        lacking = failures.lacking(unschedulable, case.work)
        if avoided := avoided_nodes(case.ledger, case.work):
            lacking = f"the run avoids {', '.join(avoided)}, where it failed before" + (
                f"; {lacking}" if lacking else ""
            )
        return Situation(
            Phase.QUEUED, Reason.UNSCHEDULABLE, f"{lacking}: {unschedulable}" if lacking else unschedulable
        )
    entry = case.ledger.at_work()
    running = entry.name if entry else next((item.name for pod in live for item in pod.stages if item.running), "")
    phase = _phase(case)
    failed = [cause for pod in case.pods if (cause := failures.of_pod(pod))]
    before = f" after {failed[-1].reason} in {failed[-1].stage}: {failed[-1].message}" if failed else ""
    if running:
        return Situation(phase, phase.value, f"{running} is running in Job {case.name}{before}")
    if failed and all(pod.stages_ended for pod in live):
        return Situation(phase, "Retrying", f"Job {case.name} is being retried{before}")
    return Situation(phase, phase.value, f"Job {case.name} is starting{before}")


def phase_before(work: Work) -> Phase:
    """Return the phase of a run whose due Job does not live yet."""
    return {"prepare": Phase.PENDING, "train": Phase.QUEUED, "publish": Phase.PUBLISHING}[work.label]


def _phase(case: Case) -> Phase:
    if case.work.label == "prepare":
        return Phase.PREPARING
    if case.work.label == "publish":
        return Phase.PUBLISHING
    begun = [any(container.started_at for container in pod.stages) for pod in case.pods]
    if not begun or not begun[-1]:  # the newest pod waits for a node, an image or a volume
        return Phase.QUEUED
    return Phase.EVALUATING if case.ledger.done(Stage.TRAIN) else Phase.TRAINING

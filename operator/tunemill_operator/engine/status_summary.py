"""The status of an object as a whole: phase, reason and message."""

from dataclasses import dataclass
from datetime import datetime

from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import FailureStatus, Phase

from tunemill_operator.engine import failures
from tunemill_operator.engine.bad_nodes import avoided_nodes
from tunemill_operator.engine.reconcile_input import DueInput
from tunemill_operator.engine.stages import Work

NOT_BETTER = "NotBetter"
"""Reason of a run that succeeded without publishing, because the published model is not worse."""


@dataclass(frozen=True)
class StatusSummary:
    """Phase, reason and message for the object as a whole."""

    phase: Phase
    reason: str
    """Reason of the conditions Ready and Reconciling."""
    message: str
    failure: FailureStatus | None = None
    """Set if the object is Stalled: someone has to act, or the run has failed."""
    suspended: bool = False
    """Whether everything has stopped because of spec.suspend."""
    trouble_since: datetime | None = None
    """Start of a transient problem that blocks the run."""


def running_summary(inputs: DueInput) -> StatusSummary:
    """Return the summary for an active Job that can continue without help."""
    live = [pod for pod in inputs.pods if not pod.terminal]
    if unschedulable := next((pod.unschedulable for pod in live if pod.unschedulable), ""):
        lacking = failures.unschedulable_reason(unschedulable, inputs.work)
        if avoided := avoided_nodes(inputs.ledger, inputs.work):
            lacking = f"the run avoids {', '.join(avoided)}, where it failed before" + (
                f"; {lacking}" if lacking else ""
            )
        return StatusSummary(
            Phase.QUEUED, Reason.UNSCHEDULABLE, f"{lacking}: {unschedulable}" if lacking else unschedulable
        )
    entry = inputs.ledger.running_stage()
    running = entry.name if entry else next((item.name for pod in live for item in pod.stages if item.running), "")
    phase = _phase(inputs)
    failed = [cause for pod in inputs.pods if (cause := failures.of_pod(pod))]
    before = f" after {failed[-1].reason} in {failed[-1].stage}: {failed[-1].message}" if failed else ""
    if running:
        return StatusSummary(phase, phase.value, f"{running} is running in Job {inputs.job_name}{before}")
    if failed and all(pod.stages_ended for pod in live):
        return StatusSummary(phase, "Retrying", f"Job {inputs.job_name} is being retried{before}")
    return StatusSummary(phase, phase.value, f"Job {inputs.job_name} is starting{_share(inputs)}{before}")


def _share(inputs: DueInput) -> str:
    """Return how many pods of a run on several nodes have started, as text. They train when all have."""
    if inputs.job is None or inputs.job.nodes == 1:
        return ""
    live = [pod for pod in inputs.observed.pods_of(inputs.job) if not pod.stages_ended]
    begun = sum(any(item.started_at for item in pod.stages) for pod in live)
    return f" on {inputs.job.nodes} nodes: {begun} of {inputs.job.nodes} pods run"


def phase_before(work: Work) -> Phase:
    """Return the phase of a run whose Job has not started."""
    return {"prepare": Phase.PENDING, "train": Phase.QUEUED, "publish": Phase.PUBLISHING}[work.label]


def _phase(inputs: DueInput) -> Phase:
    if inputs.work.label == "prepare":
        return Phase.PREPARING
    if inputs.work.label == "publish":
        return Phase.PUBLISHING
    begun = [any(container.started_at for container in pod.stages) for pod in inputs.pods]
    if not begun or not begun[-1]:  # the newest pod is waiting for a node, an image or a volume
        return Phase.QUEUED
    return Phase.EVALUATING if inputs.ledger.done(Stage.TRAIN) else Phase.TRAINING

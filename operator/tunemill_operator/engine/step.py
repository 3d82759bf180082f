"""The result of a rule: the summary for the status, and what to do next."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tunemill_api.status import Phase

from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Job
from tunemill_operator.engine.reconcile_input import ReconcileInput
from tunemill_operator.engine.stages import Ledger
from tunemill_operator.engine.status_summary import StatusSummary
from tunemill_operator.engine.volumes import Manifest

STALLED_AFTER = timedelta(minutes=2)
"""A transient problem (a throttled registry, a restarting webhook) makes an object Stalled after this time."""


@dataclass(frozen=True)
class Step:
    """The result of a rule."""

    summary: StatusSummary
    create: Manifest | None = None
    delete: tuple[Job, ...] = ()
    requeue_after: timedelta | None = None
    ledger: Ledger | None = None
    """The records to write, if they differ from those of the input."""
    needs_pods: bool = False
    """Whether the result may change after the object's pods have been listed."""

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended: it does not continue without an edit or a request."""
        failure = self.summary.failure
        return (failure is not None and failure.final is True) or self.summary.phase is Phase.SUCCEEDED


def stalled(
    inputs: ReconcileInput,
    cause: Cause,
    *,
    phase: Phase = Phase.FAILED,
    delete: tuple[Job, ...] = (),
    requeue_after: timedelta | None = None,
    ledger: Ledger | None = None,
) -> Step:
    """Return a step that marks the object as Stalled with this cause.

    With `requeue_after`, the run continues when the cause is gone. Without it, the failure is final and the run has
    ended.
    """
    failure = cause.status(inputs.finetune.generation, final=requeue_after is None)
    summary = StatusSummary(phase, str(cause.reason), failure.message, failure=failure)
    return Step(summary, delete=delete, requeue_after=requeue_after, ledger=ledger)


def blocked_by(inputs: ReconcileInput, cause: Cause, phase: Phase, requeue_after: timedelta) -> Step:
    """Return a step for a problem that prevents the run from continuing.

    A transient problem makes the object Stalled only after STALLED_AFTER. The status keeps the time at which it
    started, so that restarts of the operator and new pods do not reset it.
    """
    if not cause.transient:
        return stalled(inputs, cause, requeue_after=requeue_after)
    since = inputs.trouble_since(cause)
    left = since + STALLED_AFTER - inputs.now
    if left > timedelta(0):
        message = f"{cause.message} (retrying; Stalled if it lasts until {_clock(since + STALLED_AFTER)})"
        summary = StatusSummary(phase, str(cause.reason), message, trouble_since=since)
        return Step(summary, requeue_after=min(left, requeue_after))
    step = stalled(inputs, cause, requeue_after=requeue_after)
    return replace(step, summary=replace(step.summary, trouble_since=since))


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S} UTC"

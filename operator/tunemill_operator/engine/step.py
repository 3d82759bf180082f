"""What a rule concludes about a case: how the object is as a whole, and what is to be done next."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tunemill_api.status import Phase

from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Job
from tunemill_operator.engine.situation import Situation
from tunemill_operator.engine.stages import Ledger
from tunemill_operator.engine.volumes import Manifest

TROUBLE_LASTS_AFTER = timedelta(minutes=2)
"""What may pass by itself (a throttled registry, a webhook that restarts) makes a run Stalled after this time."""


@dataclass(frozen=True)
class Step:
    """The conclusion of a rule."""

    situation: Situation
    create: Manifest | None = None
    delete: tuple[Job, ...] = ()
    requeue_after: timedelta | None = None
    ledger: Ledger | None = None
    """Set when something else is to be recorded than what was found."""
    needs_pods: bool = False
    """Whether it may conclude something else once the object's pods were listed."""

    @property
    def is_at_rest(self) -> bool:
        """Whether the run has ended: nothing goes on before somebody changes something."""
        failure = self.situation.failure
        return (failure is not None and failure.final is True) or self.situation.phase is Phase.SUCCEEDED


def stalled(
    case: Case,
    cause: Cause,
    *,
    phase: Phase = Phase.FAILED,
    delete: tuple[Job, ...] = (),
    requeue_after: timedelta | None = None,
    ledger: Ledger | None = None,
) -> Step:
    """Return the conclusion that somebody has to act, for this cause.

    With `requeue_after` it is looked at again: the run continues by itself once the cause is gone. Without it, the run
    has ended: the failure is final.
    """
    failure = cause.status(case.finetune.generation, final=requeue_after is None)
    situation = Situation(phase, str(cause.reason), failure.message, failure=failure)
    return Step(situation, delete=delete, requeue_after=requeue_after, ledger=ledger)


def held_up(case: Case, cause: Cause, phase: Phase, requeue_after: timedelta) -> Step:
    """Return the conclusion that something keeps the run from continuing which is for somebody to correct.

    Trouble that often passes by itself makes the run Stalled only once it has lasted. The status keeps since when it is
    there, so that neither a restart of the operator nor a new pod begins the time anew.
    """
    if not cause.transient:
        return stalled(case, cause, requeue_after=requeue_after)
    since = case.trouble_since(cause)
    left = since + TROUBLE_LASTS_AFTER - case.now
    if left > timedelta(0):
        message = f"{cause.message} (retrying; Stalled if it lasts until {_clock(since + TROUBLE_LASTS_AFTER)})"
        situation = Situation(phase, str(cause.reason), message, trouble_since=since)
        return Step(situation, requeue_after=min(left, requeue_after))
    step = stalled(case, cause, requeue_after=requeue_after)
    return replace(step, situation=replace(step.situation, trouble_since=since))


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S} UTC"

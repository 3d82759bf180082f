"""What a rule concludes about a case: how the object is as a whole, and what is to be done next."""

from dataclasses import dataclass
from datetime import timedelta

from tunemill_api.status import Phase

from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Job
from tunemill_operator.engine.situation import Situation
from tunemill_operator.engine.stages import Ledger
from tunemill_operator.engine.volumes import Manifest


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
        failed = self.situation.failure is not None and self.requeue_after is None
        return failed or self.situation.phase is Phase.SUCCEEDED


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

    With `requeue_after` it is looked at again: it goes on by itself once the cause is gone.
    """
    failure = cause.status(case.finetune.generation)
    situation = Situation(phase, str(cause.reason), failure.message, failure=failure)
    return Step(situation, delete=delete, requeue_after=requeue_after, ledger=ledger)

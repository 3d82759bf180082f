"""Scheduled retraining: when the data is checked again, and which model the new one is compared with."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from tunemill_api.finetune import FineTuneSpec, Promote, Retrain
from tunemill_api.status import FineTuneStatus, Phase, RetrainStatus, Rival

from tunemill_operator.engine.objects import FineTune
from tunemill_operator.engine.observe import Observed, owned

_ENDED_PHASES = {Phase.SUCCEEDED, Phase.FAILED, Phase.HELD}


class ScheduleError(Exception):
    """The schedule or its time zone is invalid. The message names the field."""


@dataclass(frozen=True)
class ScheduleResult:
    """The object after its schedule was evaluated."""

    finetune: FineTune
    """The object with the current times in its status."""
    error: str = ""
    """Why the schedule is invalid; empty if it is valid."""


def apply_schedule(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> ScheduleResult:
    """Return the object with the last and the next scheduled time in its status.

    A scheduled time takes effect when it has passed and no run is active. Several missed times have the effect of one.
    """
    try:
        return ScheduleResult(_scheduled(finetune, spec, observed, now))
    except ScheduleError as error:
        return ScheduleResult(finetune, str(error))


def _scheduled(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> FineTune:
    known = finetune.status.retrain or RetrainStatus()
    if spec.retrain is None:
        # The last time stays part of the inputs of prepare, so that removing a schedule starts no run.
        unscheduled = RetrainStatus(last_time=known.last_time)
        return finetune if finetune.status.retrain in {None, unscheduled} else _with(finetune, unscheduled)
    text = f"{spec.retrain.schedule} {spec.retrain.time_zone}"
    if known.schedule != text or known.next_time is None:
        next_time = time_after(spec.retrain, now)
        return _with(finetune, RetrainStatus(schedule=text, next_time=next_time, last_time=known.last_time))
    if known.next_time > now or spec.suspend or not _run_has_ended(finetune, observed):
        return finetune
    next_time = time_after(spec.retrain, now)
    return _with(finetune, RetrainStatus(schedule=text, next_time=next_time, last_time=known.next_time))


def time_after(retrain: Retrain, moment: datetime) -> datetime:
    """Return the first scheduled time after `moment`, in UTC.

    Raises:
        ScheduleError: the schedule or the time zone is invalid, or there is no such time.
    """
    try:
        zone = ZoneInfo(retrain.time_zone)
    except (KeyError, ValueError, OSError) as error:  # OSError if the name is that of a directory of zones
        raise ScheduleError(
            f"spec.retrain.timeZone is {retrain.time_zone!r}: expected an IANA time zone, for example Europe/Berlin"
        ) from error
    try:
        return next(CronSim(retrain.schedule, moment.astimezone(zone))).astimezone(UTC)
    except (CronSimError, StopIteration) as error:
        what = str(error) or "it never occurs"
        raise ScheduleError(
            f"spec.retrain.schedule is {retrain.schedule!r}: {what}; expected minute, hour, day of the month, month "
            "and day of the week, for example 0 2 * * 0"
        ) from error


def rival_of(status: FineTuneStatus, spec: FineTuneSpec, trained: str) -> Rival | None:
    """Return the model that the one with the key `trained` is compared with; None if nothing is compared.

    It is chosen once per new model, so that it does not change after the new model has been published.
    """
    if status.rival and status.rival.of == trained:
        return status.rival
    if spec.retrain is None:
        return None
    incumbent = status.incumbent
    if incumbent is None or incumbent.train == trained or spec.retrain.promote is Promote.ALWAYS:
        return Rival(of=trained)
    return Rival(of=trained, prepare=incumbent.prepare, train=incumbent.train)


def _run_has_ended(finetune: FineTune, observed: Observed) -> bool:
    """Return whether the run has ended and no Job is active."""
    status = finetune.status
    ended = status.phase in _ENDED_PHASES and status.observed_generation == finetune.generation
    return ended and not any(owned(job, finetune) and not job.finished for job in observed.jobs)


def _with(finetune: FineTune, retrain: RetrainStatus) -> FineTune:
    return replace(finetune, status=finetune.status.model_copy(update={"retrain": retrain}))

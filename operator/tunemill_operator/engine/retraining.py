"""Looks at the data again on a schedule, and says which model a new one is compared with."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from tunemill_api.finetune import FineTuneSpec, Promote, Retrain
from tunemill_api.status import FineTuneStatus, Phase, RetrainStatus, Rival

from tunemill_operator.engine.objects import FineTune
from tunemill_operator.engine.observe import Observed, owned

_RESTING = {Phase.SUCCEEDED, Phase.FAILED, Phase.HELD}


class ScheduleError(Exception):
    """The schedule or its time zone cannot be understood. The message names the field."""


def scheduled(finetune: FineTune, spec: FineTuneSpec, observed: Observed, now: datetime) -> FineTune:
    """Return the object with the time for which its data is to be looked at; a new one when that is due.

    It is due once its time has come and no run is under way. However many times were missed, it is looked at once.

    Raises:
        ScheduleError: when the schedule says nothing.
    """
    known = finetune.status.retrain or RetrainStatus()
    if spec.retrain is None:
        # What was looked at stays part of what prepare is asked for: to remove a schedule starts nothing.
        wanted = RetrainStatus(last_time=known.last_time)
        return finetune if finetune.status.retrain in {None, wanted} else _with(finetune, wanted)
    text = f"{spec.retrain.schedule} {spec.retrain.time_zone}"
    if known.schedule != text or known.next_time is None:
        next_time = time_after(spec.retrain, now)
        return _with(finetune, RetrainStatus(schedule=text, next_time=next_time, last_time=known.last_time))
    if known.next_time > now or spec.suspend or not _rests(finetune, observed):
        return finetune
    next_time = time_after(spec.retrain, now)
    return _with(finetune, RetrainStatus(schedule=text, next_time=next_time, last_time=known.next_time))


def time_after(retrain: Retrain, moment: datetime) -> datetime:
    """Return the first time of the schedule after a moment, in UTC.

    Raises:
        ScheduleError: when there is none.
    """
    try:
        zone = ZoneInfo(retrain.time_zone)
    except (KeyError, ValueError, OSError) as error:  # OSError for a folder of zones
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
    """Return what the model with the key `trained` is compared with; None where nothing was ever to be compared.

    It is settled when the model is first asked for: when it is published itself, its judgement is still the same.
    """
    if status.rival and status.rival.of == trained:
        return status.rival
    if spec.retrain is None:
        return None
    incumbent = status.incumbent
    if incumbent is None or incumbent.train == trained or spec.retrain.promote is Promote.ALWAYS:
        return Rival(of=trained)
    return Rival(of=trained, prepare=incumbent.prepare, train=incumbent.train)


def _rests(finetune: FineTune, observed: Observed) -> bool:
    """Tell whether the run has ended, and nothing goes on by itself."""
    status = finetune.status
    ended = status.phase in _RESTING and status.observed_generation == finetune.generation
    return ended and not any(owned(job, finetune) and not job.finished for job in observed.jobs)


def _with(finetune: FineTune, retrain: RetrainStatus) -> FineTune:
    return replace(finetune, status=finetune.status.model_copy(update={"retrain": retrain}))

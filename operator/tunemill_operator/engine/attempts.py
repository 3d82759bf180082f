"""Reads off the pods of a Job how far one stage is: its attempts, what cut them short, its report."""

from dataclasses import replace
from datetime import datetime

from pydantic import BaseModel
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import CutShort, StageState, StageStatus

from tunemill_operator.engine.objects import Container, Ended, Job, Pod, end_within, reports_of
from tunemill_operator.engine.observe import Observed, Progress

ON_GPU = (Stage.TRAIN, Stage.EVALUATE)
"""The stages whose pod holds the GPUs."""

FACT_OF = {
    Stage.PREPARE: "prepared",
    Stage.TRAIN: "trained",
    Stage.EVALUATE: "evaluation",
    Stage.PUBLISH: "published",
}


def report_of(container: Container) -> StageReport | None:
    """Return the report of the container's stage in its termination message; None when there is none."""
    return next((report for report in reports_of(container) if report.stage == container.name), None)


def read(
    entry: StageStatus, stage: Stage, job: Job, observed: Observed, gpus: int, now: datetime, train: StageStatus
) -> tuple[StageStatus, BaseModel | None]:
    """Return the entry and the facts that the containers of the Job's pods tell.

    Args:
        entry: what is recorded about the stage.
        stage: which one.
        job: the Job that works on it.
        observed: its pods, and what they have reported.
        gpus: of each pod.
        now: the time.
        train: what is known about train, which evaluate may share a container with.
    """
    entry = entry.model_copy(update={"job": job.meta.name})
    starts = set()
    for pod in observed.pods_of(job):
        run = _run_of(stage, pod, entry.key, train, observed.progress, now)
        if run is None or run.started_at is None:
            continue
        starts.add(run.started_at)
        entry = _with_run(entry, run, run.started_at, pod, gpus, now)
        report = report_of(run)
        fact: BaseModel | None = getattr(report, FACT_OF[stage]) if report else None
        if run.ended and run.ended.exit_code == 0 and report and fact:
            return entry.model_copy(update={"state": StageState.SUCCEEDED, "executed": report.executed}), fact
    return (entry if entry.started_at in starts else _gone(entry, job, now)), None


def _run_of(
    stage: Stage, pod: Pod, key: str, train: StageStatus, progress: Progress | None, now: datetime
) -> Container | None:
    """Return the run of a stage in a pod: the container of its name, or its part of the container of several."""
    own = pod.container(stage)
    if not pod.shared:
        return own
    if stage is Stage.TRAIN:
        done = progress.report if progress and progress.pod == pod.meta.uid else None
        heard = done is not None and done.stage is stage and done.key == key and done.trained is not None
        if done is None or not heard or own is None or not own.running or pod.terminal:
            return own
        ended = Ended(0, "Completed", done.termination_message(), end_within(own, done, now))
        return replace(own, ended=ended)
    whole = pod.container(Stage.TRAIN)
    if whole is None or whole.started_at is None or train.state is not StageState.SUCCEEDED:
        return None
    if train.started_at and whole.started_at < train.started_at:
        return None  # it ended before train was done
    # A pod that came after the one in which train was done is here for evaluate, as long as it runs.
    began = train.finished_at if whole.started_at == train.started_at else whole.started_at
    run = own or replace(whole, name=stage.value)
    return replace(run, started_at=max(began or whole.started_at, whole.started_at))


def _gone(entry: StageStatus, job: Job, now: datetime) -> StageStatus:
    """Return the entry of a stage whose last pod is gone; the pods of a suspended Job go as soon as they have ended."""
    rest = at_rest(entry, now)
    if entry.state is not StageState.RUNNING or not job.suspended:
        return rest
    return rest.model_copy(update={"preemptions": entry.preemptions + 1, "cut_short": CutShort.PREEMPTED})


def _with_run(
    entry: StageStatus, run: Container, started_at: datetime, pod: Pod, gpus: int, now: datetime
) -> StageStatus:
    """Return the entry with one run of the stage's container, which may be the one that it knows already."""
    if entry.started_at is None or started_at > entry.started_at:
        # A start without a known end before it ends at the latest where the next one begins.
        entry = folded(at_rest(entry, started_at)).model_copy(
            update={"started_at": started_at, "attempts": entry.attempts + 1, "gpus": gpus, "cut_short": None}
        )
    elif started_at < entry.started_at:
        return entry
    if run.running and not pod.terminal and not pod.lost(now):
        return entry.model_copy(update={"state": StageState.RUNNING, "finished_at": None})
    finished_at = (run.ended.finished_at if run.ended else None) or entry.finished_at or now
    entry = entry.model_copy(update={"state": StageState.PENDING, "finished_at": finished_at})
    return entry if entry.cut_short else _counted(entry, run, pod)


def _counted(entry: StageStatus, run: Container, pod: Pod) -> StageStatus:
    """Return the entry with what cut its last run short, if that is of a kind that is counted."""
    code = run.ended.exit_code if run.ended else None
    if code != 0 and pod.reason == "Evicted":
        return entry.model_copy(update={"evictions": entry.evictions + 1, "cut_short": CutShort.EVICTED})
    if code != 0 and entry.name in ON_GPU and _needed_memory(run):
        return entry.model_copy(update={"memory_kills": entry.memory_kills + 1, "cut_short": CutShort.OUT_OF_MEMORY})
    if code == ExitCode.INTERRUPTED or (code != 0 and pod.disrupted):
        return entry.model_copy(update={"preemptions": entry.preemptions + 1, "cut_short": CutShort.PREEMPTED})
    return entry


def _needed_memory(run: Container) -> bool:
    report = report_of(run)
    if report and report.failure:
        return report.failure.reason is Reason.OUT_OF_MEMORY
    return run.ended is not None and run.ended.reason == "OOMKilled"


def at_rest(entry: StageStatus, now: datetime) -> StageStatus:
    """Return the entry of a stage at which nothing works: it is not running, and its last run has an end."""
    update: dict[str, object] = {}
    if entry.state in {StageState.RUNNING, StageState.FAILED}:
        update["state"] = StageState.PENDING
    if entry.started_at and not entry.finished_at:
        update["finished_at"] = max(now, entry.started_at)
    return entry.model_copy(update=update)


def folded(entry: StageStatus) -> StageStatus:
    """Return the entry with its last run counted among the earlier ones."""
    seconds = int(run_seconds(entry, entry.finished_at or entry.started_at))
    return entry.model_copy(
        update={
            "earlier_seconds": entry.earlier_seconds + seconds,
            "earlier_gpu_seconds": entry.earlier_gpu_seconds + entry.gpus * seconds,
            "started_at": None,
            "finished_at": None,
        }
    )


def run_seconds(entry: StageStatus, until: datetime | None) -> float:
    """Return how long the stage's last run has taken until then; 0 when there was none."""
    return max(0.0, (until - entry.started_at).total_seconds()) if entry.started_at and until else 0.0

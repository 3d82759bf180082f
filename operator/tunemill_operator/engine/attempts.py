"""Updates the record of a stage from the pods of its Job: attempts, early ends, report."""

from dataclasses import replace
from datetime import datetime

from pydantic import BaseModel
from tunemill_api.failures import FINAL_EXIT_CODES, ExitCode, Reason
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import CutShort, StageState, StageStatus

from tunemill_operator.engine.groups import attempts_of
from tunemill_operator.engine.objects import Container, Ended, Job, Pod, end_within, reports_of
from tunemill_operator.engine.observe import Observed, Progress

GPU_STAGES = (Stage.TRAIN, Stage.EVALUATE)
"""Stages whose pod has the GPUs."""

FACT_FIELDS = {
    Stage.PREPARE: "prepared",
    Stage.TRAIN: "trained",
    Stage.EVALUATE: "evaluation",
    Stage.PUBLISH: "published",
}


def report_of(container: Container) -> StageReport | None:
    """Return the report of the container's stage from its termination message, or None."""
    return next((report for report in reports_of(container) if report.stage == container.name), None)


def read(
    entry: StageStatus, stage: Stage, job: Job, observed: Observed, gpus: int, now: datetime, train: StageStatus
) -> tuple[StageStatus, BaseModel | None]:
    """Return the record and the result of a stage from the containers of the Job's pods.

    Args:
        entry: the record of the stage.
        stage: the stage.
        job: the Job that runs it.
        observed: the pods and their reports.
        gpus: number of GPUs of each pod, for GPU_STAGES.
        now: the time.
        train: the record of train, with which evaluate may share a container.
    """
    entry = entry.model_copy(update={"job": job.meta.name})
    starts = set()
    known = [each.started_at for each in (entry, train) if each.started_at]
    for pod in attempts_of(observed.pods_of(job), job.nodes, max(known, default=None), now):
        run = _run_of(stage, pod, entry.key, train, observed.progress, now)
        if run is None or run.started_at is None:
            continue
        starts.add(run.started_at)
        entry = _with_run(entry, run, run.started_at, pod, job.nodes, gpus, now)
        report = report_of(run)
        fact: BaseModel | None = getattr(report, FACT_FIELDS[stage]) if report else None
        if run.ended and run.ended.exit_code == 0 and report and fact:
            return entry.model_copy(update={"state": StageState.SUCCEEDED, "executed": report.executed}), fact
    return (entry if entry.started_at in starts else _gone(entry, job, now)), None


def _run_of(
    stage: Stage, pod: Pod, key: str, train: StageStatus, progress: Progress | None, now: datetime
) -> Container | None:
    """Return the run of a stage in a pod: its container, or its part of a shared container."""
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
        return None  # the container ended before train was done
    # A pod that started after train was done runs evaluate only.
    began = train.finished_at if whole.started_at == train.started_at else whole.started_at
    run = own or replace(whole, name=stage.value)
    return replace(run, started_at=max(began or whole.started_at, whole.started_at))


def _gone(entry: StageStatus, job: Job, now: datetime) -> StageStatus:
    """Return the record of a stage whose last pod was deleted. Pods of a suspended Job are deleted when they end."""
    rest = stopped(entry, now)
    if entry.state is not StageState.RUNNING or not job.suspended:
        return rest
    return ended_early(rest, CutShort.PREEMPTED, preemptions=entry.preemptions + 1)


def _with_run(
    entry: StageStatus, run: Container, started_at: datetime, pod: Pod, nodes: int, gpus: int, now: datetime
) -> StageStatus:
    """Return the record updated with one run of the stage's container, which may already be recorded."""
    if entry.started_at is None or started_at > entry.started_at:
        entry = _next_attempt(entry, started_at, nodes, gpus)
    elif started_at < entry.started_at:
        return entry
    if run.running and not pod.terminal and not pod.lost(now):
        return entry.model_copy(update={"state": StageState.RUNNING, "finished_at": None})
    finished_at = (run.ended.finished_at if run.ended else None) or entry.finished_at or now
    entry = entry.model_copy(update={"state": StageState.PENDING, "finished_at": finished_at})
    return entry if entry.cut_short else _counted(entry, run, pod)


def _next_attempt(entry: StageStatus, started_at: datetime, nodes: int, gpus: int) -> StageStatus:
    """Return the record with a new run. A previous run without a known end ends at the start of the new one."""
    earlier = closed(stopped(entry, started_at))
    new_run = {"started_at": started_at, "attempts": entry.attempts + 1, "gpus": nodes * gpus}
    new_run["nodes"] = nodes if nodes > 1 else 0
    no_trouble = {"cut_short": None, "start_timeouts": 0, "next_start": None}
    return earlier.model_copy(update={**new_run, **no_trouble})


def _counted(entry: StageStatus, run: Container, pod: Pod) -> StageStatus:
    """Return the record with the counter increased for the reason why the last run ended early, if there is one."""
    code = run.ended.exit_code if run.ended else None
    if code != 0 and pod.reason == "Evicted":
        return ended_early(entry, CutShort.EVICTED, evictions=entry.evictions + 1)
    if code != 0 and entry.name in GPU_STAGES and _needed_memory(run):
        return ended_early(entry, CutShort.OUT_OF_MEMORY, memory_kills=entry.memory_kills + 1)
    if code == ExitCode.INTERRUPTED or (code != 0 and pod.disrupted):
        return ended_early(entry, CutShort.PREEMPTED, preemptions=entry.preemptions + 1)
    if entry.nodes <= 1 or code in (None, 0) or code in FINAL_EXIT_CODES:
        return entry
    if code == ExitCode.PEER_LOST:
        return ended_early(entry, CutShort.PEER_LOST, peer_losses=entry.peer_losses + 1)
    report = report_of(run)
    reason = report.failure.reason if report and report.failure else Reason.POD_LOST
    return ended_early(entry, CutShort.POD_FAILED, cause=reason.value)


def ended_early(entry: StageStatus, why: CutShort, *, cause: str = "", **counters: int) -> StageStatus:
    """Return the record of a stage whose pod, or whose pods on several nodes, ended early, with these counters.

    With several nodes, `cause` is counted, which is `why` by default.
    """
    update: dict[str, object] = {**counters, "cut_short": why}
    if entry.nodes > 1:
        cause = cause or why.value
        update["restarts"] = {**entry.restarts, cause: entry.restarts.get(cause, 0) + 1}
    return entry.model_copy(update=update)


def _needed_memory(run: Container) -> bool:
    report = report_of(run)
    if report and report.failure:
        return report.failure.reason is Reason.OUT_OF_MEMORY
    return run.ended is not None and run.ended.reason == "OOMKilled"


def stopped(entry: StageStatus, now: datetime) -> StageStatus:
    """Return the record of a stage that is not running. Its last run has an end."""
    update: dict[str, object] = {}
    if entry.state in {StageState.RUNNING, StageState.FAILED}:
        update["state"] = StageState.PENDING
    if entry.started_at and not entry.finished_at:
        update["finished_at"] = max(now, entry.started_at)
    return entry.model_copy(update=update)


def closed(entry: StageStatus) -> StageStatus:
    """Return the record with its last run added to the earlier ones."""
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
    """Return the duration of the stage's last run until `until` in seconds. 0 if there was none."""
    return max(0.0, (until - entry.started_at).total_seconds()) if entry.started_at and until else 0.0

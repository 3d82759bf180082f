"""Reads off the pods of a Job how far one stage is: its attempts, what cut them short, its report."""

from datetime import datetime

from pydantic import BaseModel, ValidationError
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.plain_text import parsed
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import CutShort, StageState, StageStatus

from tunemill_operator.engine.objects import Container, Job, Pod
from tunemill_operator.engine.observe import Observed

ON_GPU = (Stage.TRAIN, Stage.EVALUATE)
"""The stages whose pod holds the GPUs."""

FACT_OF = {
    Stage.PREPARE: "prepared",
    Stage.TRAIN: "trained",
    Stage.EVALUATE: "evaluation",
    Stage.PUBLISH: "published",
}


def report_of(container: Container) -> StageReport | None:
    """Return the report that a container left as its termination message; None when it left none."""
    if container.ended is None or not container.ended.message.startswith("{"):
        return None
    try:
        report = parsed(StageReport, container.ended.message)
    except ValidationError:  # what a stage prints may look like JSON too: no report then, and the message is shown
        return None
    return report if report.stage == container.name else None


def read(
    entry: StageStatus, stage: Stage, job: Job, observed: Observed, gpus: int, now: datetime
) -> tuple[StageStatus, BaseModel | None]:
    """Return the entry and the facts that the containers of the Job's pods tell."""
    entry = entry.model_copy(update={"job": job.meta.name})
    starts = set()
    for pod in observed.pods_of(job):
        run = pod.container(stage)
        if run is None or run.started_at is None:
            continue
        starts.add(run.started_at)
        entry = _with_run(entry, run, run.started_at, pod, gpus, now)
        report = report_of(run)
        fact: BaseModel | None = getattr(report, FACT_OF[stage]) if report else None
        if run.ended and run.ended.exit_code == 0 and report and fact:
            return entry.model_copy(update={"state": StageState.SUCCEEDED, "executed": report.executed}), fact
    return (entry if entry.started_at in starts else _gone(entry, job, now)), None


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

"""What is observed about one FunctionCallFineTune: its Jobs, pods, Warning events, progress and Workloads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import TrainerStatus

from tunemill_operator.engine.objects import FineTune, Job, Pod
from tunemill_operator.engine.profiles import Profile
from tunemill_operator.engine.workloads import Workload

FIRST_CHECK_AFTER = timedelta(seconds=3)
"""A Job without a pod, or a pod that does not start, is checked for Warning events after this time."""
RECHECK_INTERVAL = timedelta(seconds=10)
"""Minimum interval for checks of conditions without a watch, such as a missing Secret or a full quota."""
MAX_RECHECK_INTERVAL = timedelta(minutes=5)
"""Maximum interval for such checks. A thousand objects may wait for one quota."""


@dataclass(frozen=True)
class WarningEvent:
    """A Warning event about a Job or pod that does not start."""

    about: str
    """Uid of the Job or pod."""
    reason: str
    message: str
    last_seen: datetime


@dataclass(frozen=True)
class Progress:
    """The latest reports of a pod."""

    pod: str
    """Uid of the pod."""
    status: TrainerStatus | None
    """The latest progress. None until the pod has reported any."""
    stage: Stage | None = None
    """Stage of the progress. None if the report does not contain it."""
    report: StageReport | None = None
    """Report of a finished stage while the next one runs in the same container."""


@dataclass(frozen=True)
class Refusal:
    """The API server's answer to a Job that it rejected."""

    code: int
    message: str
    taken: bool
    """Whether a Job with this name exists and belongs to something else."""


@dataclass(frozen=True)
class KueueState:
    """The Workloads of the Jobs that were looked up in Kueue."""

    installed: bool
    """Whether Kueue is installed."""
    workloads: tuple[Workload, ...] = ()

    def of(self, job: Job) -> Workload | None:
        """Return the Workload of the Job."""
        return next((workload for workload in self.workloads if workload.job == job.meta.uid), None)


@dataclass(frozen=True)
class Observed:
    """The Jobs and pods with the object's label, and what is known about them."""

    jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    warning_events: tuple[WarningEvent, ...] = ()
    progress: Progress | None = None
    pods_listed: bool = False
    """Whether the pods were listed just now, so that pods that are not included do not exist."""
    refusal: Refusal | None = None
    """Set if the API server rejected the Job of the previous plan."""
    kueue: KueueState | None = None
    """None if Kueue was not queried, or access is denied."""
    profiles: Sequence[Profile] = ()
    """All FineTuneProfiles in the cluster."""

    def job(self, name: str) -> Job | None:
        """Return the Job with this name."""
        return next((job for job in self.jobs if job.meta.name == name), None)

    def pods_of(self, job: Job) -> tuple[Pod, ...]:
        """Return the pods of a Job, oldest first."""
        return tuple(sorted((pod for pod in self.pods if pod.meta.owner == job.meta.uid), key=_age))

    def orphaned_pods(self) -> tuple[Pod, ...]:
        """Return the pods that may still run a stage although their Job does not exist."""
        jobs = {job.meta.uid for job in self.jobs}
        gone = (pod for pod in self.pods if pod.meta.owner not in jobs and pod.meta.serves_finetune)
        return tuple(pod for pod in gone if not pod.stages_ended)

    def lost_pods(self, now: datetime) -> tuple[Pod, ...]:
        """Return the pods that have not ended within their grace period."""
        return tuple(pod for pod in self.pods if pod.meta.serves_finetune and pod.lost(now))

    def running_jobs(self) -> tuple[Job, ...]:
        """Return the Jobs of the object, or of an earlier object with its name, that may still run a stage.

        A Job that is being deleted creates no pods. Once its stages have ended, a sidecar that is slow to stop is
        ignored. With several nodes, the Job is waited for: a pod of it may not have been observed yet.
        """
        return tuple(job for job in self.jobs if job.named_by_operator and not self._is_over(job))

    def _is_over(self, job: Job) -> bool:
        pods = self.pods_of(job)
        if job.nodes > 1:
            return job.finished and all(pod.stages_ended for pod in pods)
        return job.finished or (job.meta.deleting and bool(pods) and all(pod.stages_ended for pod in pods))

    def warning_events_about(self, uids: Iterable[str]) -> tuple[WarningEvent, ...]:
        """Return the Warning events about these objects, newest first."""
        wanted = set(uids)
        about = (event for event in self.warning_events if event.about in wanted)
        return tuple(sorted(about, key=lambda event: event.last_seen, reverse=True))


def owned(job: Job, finetune: FineTune) -> bool:
    """Return whether the Job belongs to this object, not to an earlier one with the same name."""
    return job.meta.owner == finetune.meta.uid


def jobs_without_admission(finetune: FineTune, observed: Observed) -> tuple[Job, ...]:
    """Return the Jobs whose Workloads are needed: suspended ones, and queued ones without a recorded admission.

    Later decisions of Kueue are visible in the Job, which is resumed or suspended.
    """
    recorded = finetune.status.queue is not None and finetune.status.queue.cluster_queue != ""
    live = [job for job in observed.jobs if not job.finished and not job.meta.deleting]
    return tuple(job for job in live if job.suspended or (job.queue and not recorded))


def not_started(jobs: Iterable[Job], pods: Sequence[Pod]) -> tuple[Job | Pod, ...]:
    """Return the active Jobs and pods that have not started, whose Warning events may show why."""
    found: list[Job | Pod] = []
    for job in jobs:
        if job.finished or job.suspended or job.meta.deleting:
            continue
        live = [pod for pod in pods if pod.meta.owner == job.meta.uid and not pod.terminal]
        found.extend([pod for pod in live if _waits(pod)] if live else [job])
    return tuple(found)


def recheck_interval(waited: timedelta) -> timedelta:
    """Return when to check again what has not changed for `waited`: the longer, the less often."""
    return min(max(waited / 4, RECHECK_INTERVAL), MAX_RECHECK_INTERVAL)


def _waits(pod: Pod) -> bool:
    return not pod.unschedulable and not any(container.started_at for container in pod.stages)


def _age(pod: Pod) -> tuple[datetime, str]:
    return pod.meta.created_at, pod.meta.name

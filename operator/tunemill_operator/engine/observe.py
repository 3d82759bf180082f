"""Everything that is known about one FunctionCallFineTune at the moment of a decision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import TrainerStatus

from tunemill_operator.engine.objects import FineTune, Job, Pod
from tunemill_operator.engine.profiles import Profile
from tunemill_operator.engine.workloads import Workload

SILENT_AFTER = timedelta(seconds=3)
"""A Job without a pod, or a pod that does not start, is asked for its events after this time."""
LOOK_AGAIN = timedelta(seconds=10)
"""How soon something is looked at again whose change no watch tells: a missing Secret, a full quota."""
LOOK_SELDOM = timedelta(minutes=5)
"""How seldom at most: a thousand objects may wait for one quota."""


@dataclass(frozen=True)
class Complaint:
    """A Warning event about a Job or pod that makes no headway."""

    about: str
    """The uid of the Job or pod."""
    reason: str
    message: str
    last_seen: datetime


@dataclass(frozen=True)
class Progress:
    """What a pod has reported last."""

    pod: str
    """The pod's uid."""
    status: TrainerStatus | None
    """None before it reported any figures."""
    stage: Stage | None = None
    """The stage that the figures are of; None when it did not say."""
    report: StageReport | None = None
    """The report of a stage that has ended while the next one works in the same container."""


@dataclass(frozen=True)
class Refusal:
    """The API server's answer to a Job that it did not take."""

    code: int
    message: str
    taken: bool
    """Whether a Job of that name exists and is not ours."""


@dataclass(frozen=True)
class Queueing:
    """What Kueue says about the Jobs of which it was asked."""

    installed: bool
    """Whether there is a Kueue to ask."""
    workloads: tuple[Workload, ...] = ()

    def of(self, job: Job) -> Workload | None:
        """Return the Job's Workload."""
        return next((workload for workload in self.workloads if workload.job == job.meta.uid), None)


@dataclass(frozen=True)
class Observed:
    """The Jobs and pods that carry the object's label, and what was said about them."""

    jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    complaints: tuple[Complaint, ...] = ()
    progress: Progress | None = None
    pods_listed: bool = False
    """Whether the pods were just listed, so that what is not among them does not exist."""
    refusal: Refusal | None = None
    """Set when the Job that the last plan asked for was refused."""
    queueing: Queueing | None = None
    """None when Kueue was not asked, or may not be."""
    profiles: Sequence[Profile] = ()
    """All that there are in the cluster."""

    def job(self, name: str) -> Job | None:
        """Return the Job of that name."""
        return next((job for job in self.jobs if job.meta.name == name), None)

    def pods_of(self, job: Job) -> tuple[Pod, ...]:
        """Return the pods of a Job, oldest first."""
        return tuple(sorted((pod for pod in self.pods if pod.meta.owner == job.meta.uid), key=_age))

    def stray_pods(self) -> tuple[Pod, ...]:
        """Return the pods that may still run a stage although their Job is gone."""
        jobs = {job.meta.uid for job in self.jobs}
        gone = (pod for pod in self.pods if pod.meta.owner not in jobs and pod.meta.serves_finetune)
        return tuple(pod for pod in gone if not pod.stages_ended)

    def lost_pods(self, now: datetime) -> tuple[Pod, ...]:
        """Return the pods that their nodes have not ended although their time is over."""
        return tuple(pod for pod in self.pods if pod.meta.serves_finetune and pod.lost(now))

    def busy_jobs(self) -> tuple[Job, ...]:
        """Return the Jobs of the object, or of an earlier one of its name, of which a pod may still run a stage.

        A Job that is being deleted creates no pod any more. When its stages have ended, a sidecar that takes its time
        to stop holds nobody up.
        """
        return tuple(job for job in self.jobs if job.named_by_operator and not job.finished and not self._is_over(job))

    def _is_over(self, job: Job) -> bool:
        pods = self.pods_of(job)
        return job.meta.deleting and bool(pods) and all(pod.stages_ended for pod in pods)

    def complaints_about(self, uids: Iterable[str]) -> tuple[Complaint, ...]:
        """Return what was said about these objects, newest first."""
        wanted = set(uids)
        about = (complaint for complaint in self.complaints if complaint.about in wanted)
        return tuple(sorted(about, key=lambda complaint: complaint.last_seen, reverse=True))


def owned(job: Job, finetune: FineTune) -> bool:
    """Tell whether the Job belongs to this very object, not to an earlier one of the same name."""
    return job.meta.owner == finetune.meta.uid


def unadmitted(finetune: FineTune, observed: Observed) -> tuple[Job, ...]:
    """Return the Jobs of which Kueue has to be asked: those it holds back, and those whose admission is no record yet.

    What it decides about them later shows in the Job: it goes on, or is suspended.
    """
    recorded = finetune.status.queue is not None and finetune.status.queue.cluster_queue != ""
    live = [job for job in observed.jobs if not job.finished and not job.meta.deleting]
    return tuple(job for job in live if job.suspended or (job.queue and not recorded))


def not_started(jobs: Iterable[Job], pods: Sequence[Pod]) -> tuple[Job | Pod, ...]:
    """Return those of an object's Jobs and pods whose events may say why nothing happens."""
    found: list[Job | Pod] = []
    for job in jobs:
        if job.finished or job.suspended or job.meta.deleting:
            continue
        live = [pod for pod in pods if pod.meta.owner == job.meta.uid and not pod.terminal]
        found.extend([pod for pod in live if _waits(pod)] if live else [job])
    return tuple(found)


def patience(waited: timedelta) -> timedelta:
    """Return when to look again at what has not changed for so long: the longer it lasts, the more seldom."""
    return min(max(waited / 4, LOOK_AGAIN), LOOK_SELDOM)


def _waits(pod: Pod) -> bool:
    return not pod.unschedulable and not any(container.started_at for container in pod.stages)


def _age(pod: Pod) -> tuple[datetime, str]:
    return pod.meta.created_at, pod.meta.name

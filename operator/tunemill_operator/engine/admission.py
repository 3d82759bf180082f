"""What follows from how the due Job stands with Kueue: it waits, it was stopped, or there is no queue to take it."""

import re
from datetime import datetime, timedelta

from tunemill_api.failures import Reason
from tunemill_api.status import Phase, QueueStatus

from tunemill_operator.engine.case import Case
from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Job
from tunemill_operator.engine.situation import Situation
from tunemill_operator.engine.workloads import Workload

TAKEN_WITHIN = timedelta(seconds=10)
"""Kueue makes a Job's Workload at once; where there is none after this time, there will be none."""


def queue_of(case: Case) -> QueueStatus | None:
    """Return how the due Job stands with Kueue; None when it is in no queue, or is not known to be."""
    job, before = case.job, case.finetune.status.queue
    if job is None or job.finished or job.meta.deleting or not job.queue:
        return None
    workload = _workload(case, job)
    if workload is None:  # once it is admitted, Kueue is not asked again
        return None if job.suspended else before
    return QueueStatus(
        name=workload.queue,
        workload=workload.name,
        cluster_queue=workload.cluster_queue,
        flavors=dict(workload.flavors),
        since=workload.since,
    )


def without_queue(case: Case, job: Job) -> Cause | None:
    """Return why no queue will ever take a Job that waits for one; None when it is in one."""
    stage, queueing, workload = case.work.stages[0], case.observed.queueing, _workload(case, job)
    if queueing is None or not job.queue:
        return None
    if not queueing.installed:
        message = f"Job {job.meta.name} is for the queue {job.queue}, but this cluster has no Kueue"
        return Cause(stage, Reason.QUEUE_UNAVAILABLE, f"{message} that serves kueue.x-k8s.io/v1beta2")
    if workload is None and case.now - job.meta.created_at > TAKEN_WITHIN:
        priority = f", and that the WorkloadPriorityClass {job.priority} exists" if job.priority else ""
        message = f"Kueue has created no Workload for Job {job.meta.name} in the queue {job.queue}"
        check = f"check that its controller runs, that it manages Jobs in this namespace{priority}"
        return Cause(stage, Reason.QUEUE_UNAVAILABLE, f"{message}: {check}")
    if workload and re.search(r"LocalQueue \S+ doesn't exist", workload.waits_for):
        message = f"LocalQueue {workload.queue} does not exist in the namespace {job.meta.namespace}"
        return Cause(stage, Reason.QUEUE_NOT_FOUND, message)
    return None


def waiting(case: Case, job: Job) -> Situation:
    """Return how far a Job is that is held back: the queue's business, and no fault of the run."""
    workload = _workload(case, job)
    why = f": {workload.stopped}" if workload and workload.stopped else ""
    if live := [pod.meta.name for pod in case.pods if not pod.terminal]:
        message = f"Job {job.meta.name} was suspended{why}; {', '.join(live)} is saving a checkpoint"
        return Situation(Phase.QUEUED, "Stopping", message)
    if not job.queue:
        return Situation(Phase.QUEUED, "JobSuspended", f"spec.suspend of Job {job.meta.name} was set by another client")
    message = f"Job {job.meta.name} is waiting in the queue {job.queue}"
    if workload:
        message += f" since {workload.since:%Y-%m-%d %H:%M:%S} UTC"
        message += f": {workload.waits_for}" if workload.waits_for else ""
        message += f"; it was suspended{why}" if why and workload.stopped != workload.waits_for else ""
    return Situation(Phase.QUEUED, "Queued", message)


def waits_since(case: Case, job: Job) -> datetime:
    """Return since when the Job has been held back, as far as it is known."""
    workload = _workload(case, job)
    if workload and workload.stopped and workload.cluster_queue:  # it is about to give its quota back
        return case.now
    return workload.since if workload else job.meta.created_at


def _workload(case: Case, job: Job) -> Workload | None:
    return case.observed.queueing.of(job) if case.observed.queueing else None

"""The state of the Job in Kueue: waiting, suspended, or without a queue."""

import re
from datetime import datetime, timedelta

from tunemill_api.failures import Reason
from tunemill_api.status import Phase, QueueStatus

from tunemill_operator.engine.failures import Cause
from tunemill_operator.engine.objects import Job
from tunemill_operator.engine.reconcile_input import DueInput, ReconcileInput
from tunemill_operator.engine.status_summary import StatusSummary
from tunemill_operator.engine.workloads import Workload

WORKLOAD_TIMEOUT = timedelta(seconds=10)
"""Kueue creates the Workload of a Job immediately. If there is none after this time, there will be none."""


def queue_of(inputs: ReconcileInput) -> QueueStatus | None:
    """Return Kueue's state of the Job. None if it is not queued, or the state is unknown."""
    job, before = inputs.job, inputs.finetune.status.queue
    if job is None or job.finished or job.meta.deleting or not job.queue:
        return None
    workload = _workload(inputs, job)
    if workload is None:  # the Workload of an admitted Job is not read again
        return None if job.suspended else before
    return QueueStatus(
        name=workload.queue,
        workload=workload.name,
        cluster_queue=workload.cluster_queue,
        flavors=dict(workload.flavors),
        quota=dict(workload.quota),
        since=workload.since,
    )


def without_queue(inputs: DueInput, job: Job) -> Cause | None:
    """Return why no queue accepts the Job. None if it is queued."""
    stage, queueing, workload = inputs.work.stages[0], inputs.observed.kueue, _workload(inputs, job)
    if queueing is None or not job.queue:
        return None
    if not queueing.installed:
        message = f"Job {job.meta.name} is for the queue {job.queue}, but this cluster has no Kueue"
        return Cause(stage, Reason.QUEUE_UNAVAILABLE, f"{message} that serves kueue.x-k8s.io/v1beta2")
    if workload is None and inputs.now - job.meta.created_at > WORKLOAD_TIMEOUT:
        priority = f", and that the WorkloadPriorityClass {job.priority} exists" if job.priority else ""
        message = f"Kueue has created no Workload for Job {job.meta.name} in the queue {job.queue}"
        check = f"check that its controller runs, that it manages Jobs in this namespace{priority}"
        return Cause(stage, Reason.QUEUE_UNAVAILABLE, f"{message}: {check}")
    if workload and re.search(r"LocalQueue \S+ doesn't exist", workload.waits_for):
        message = f"LocalQueue {workload.queue} does not exist in the namespace {job.meta.namespace}"
        return Cause(stage, Reason.QUEUE_NOT_FOUND, message)
    return None


def waiting(inputs: DueInput, job: Job) -> StatusSummary:
    """Return the summary for a suspended Job."""
    workload = _workload(inputs, job)
    why = f": {workload.stopped}" if workload and workload.stopped else ""
    if live := [pod.meta.name for pod in inputs.pods if not pod.terminal]:
        message = f"Job {job.meta.name} was suspended{why}; {', '.join(live)} is saving a checkpoint"
        return StatusSummary(Phase.QUEUED, "Stopping", message)
    if not job.queue:
        return StatusSummary(
            Phase.QUEUED, "JobSuspended", f"spec.suspend of Job {job.meta.name} was set by another client"
        )
    message = f"Job {job.meta.name} is waiting in the queue {job.queue}"
    if workload:
        message += f" since {workload.since:%Y-%m-%d %H:%M:%S} UTC"
        message += f": {workload.waits_for}" if workload.waits_for else ""
        message += f"; it was suspended{why}" if why and workload.stopped != workload.waits_for else ""
    return StatusSummary(Phase.QUEUED, "Queued", message)


def waits_since(inputs: ReconcileInput, job: Job) -> datetime:
    """Return since when the Job has been suspended, as far as it is known."""
    workload = _workload(inputs, job)
    if workload and workload.stopped and workload.cluster_queue:  # its quota is about to be released
        return inputs.now
    return workload.since if workload else job.meta.created_at


def _workload(inputs: ReconcileInput, job: Job) -> Workload | None:
    return inputs.observed.kueue.of(job) if inputs.observed.kueue else None

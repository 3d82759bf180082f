"""How the operator handles Jobs that Kueue suspends, admits and preempts."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from property.builders import a_finetune_body, a_spec, at, parsed, text
from property.simulator import World
from property.worlds import condition, entry
from tunemill_api import keys
from tunemill_api.constants import LABEL_PRIORITY, LABEL_QUEUE
from tunemill_api.failures import Actor, Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.engine.observe import KueueState, jobs_without_admission
from tunemill_operator.engine.plan import plan
from tunemill_operator.engine.workloads import LABEL_JOB, workload_of

QUEUE = {"name": "team-a"}
Json = dict[str, Any]


def a_waiting_world(**parts: Any) -> World:
    """Return a world in which the train Job waits in its queue."""
    world = World(**{"queue": QUEUE, **parts})
    world.settle()
    world.run_pod()
    world.settle()
    assert world.queued(), world.status
    return world


def a_training_world(**parts: Any) -> World:
    """Return a world in which the train Job is admitted and runs."""
    world = a_waiting_world(**parts)
    world.seconds += 60
    world.admit()
    world.settle()
    world.start(world.live_pods()[0])
    world.settle()
    assert world.status.phase is Phase.TRAINING, world.status
    return world


def finish(world: World) -> None:
    """Let every remaining stage succeed."""
    for _ in range(4):
        world.admit()
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED, world.status


def test_only_the_train_job_is_queued() -> None:
    """Data errors are reported before a GPU is requested, and publishing does not wait again."""
    world = a_waiting_world(queue={"name": "team-a", "priorityClass": "high"})
    finish(world)
    jobs = {name.split("-")[1]: job for name, job in world.jobs.items()}
    queued = {stage: {LABEL_QUEUE, LABEL_PRIORITY} & set(job["metadata"]["labels"]) for stage, job in jobs.items()}
    assert queued == {"prepare": set(), "train": {LABEL_QUEUE, LABEL_PRIORITY}, "publish": set()}
    assert [stage for stage, job in jobs.items() if "suspend" in job["spec"]] == ["train"]


def test_without_a_queue_no_job_has_a_queue_label() -> None:
    """Clusters without Kueue are unaffected."""
    world = World()
    finish(world)
    assert not any(LABEL_QUEUE in job["metadata"]["labels"] or "suspend" in job["spec"] for job in world.jobs.values())


def test_changing_the_queue_reruns_no_stage() -> None:
    """The queue does not affect outputs, so it is in no key."""
    plain, queued = parsed(a_spec()), parsed(a_spec(queue={"name": "team-a", "priorityClass": "high"}))
    assert keys.prepare_inputs(plain) == keys.prepare_inputs(queued)
    resolved = {"baseModel": "commit", "dataset": "sha256:1"}
    assert keys.prepare_key(plain, resolved) == keys.prepare_key(queued, resolved)
    assert keys.train_key("prepared", plain) == keys.train_key("prepared", queued)
    assert keys.evaluate_key("trained", plain) == keys.evaluate_key("trained", queued)
    assert keys.publish_key("judged", plain) == keys.publish_key("judged", queued)


def test_a_waiting_run_is_queued_and_its_status_has_queue_time_and_reason() -> None:
    """Waiting for quota is neither Stalled nor Failed."""
    world = a_waiting_world()
    assert world.status.phase is Phase.QUEUED
    assert (condition(world, "Reconciling").status, condition(world, "Stalled").status) == ("True", "False")
    assert condition(world, "Ready").reason == "Queued"
    message = condition(world, "Ready").message
    assert "is waiting in the queue team-a since 2026-11-21 12:00:00 UTC: insufficient unused quota" in message
    assert (world.status.queue.name, world.status.queue.cluster_queue) == ("team-a", "")


def test_time_in_the_queue_does_not_count_as_running_time() -> None:
    """Days in the queue count against no limit, and deleted pods are no retries."""
    world = a_waiting_world(maxRuntime="10m", maxGpuHours="0.5", stallTimeout="5m", retry={"limit": 0})
    for _ in range(50):
        world.seconds += 3600
        world.settle()
        assert world.status.phase is Phase.QUEUED
    assert world.status.run.gpu_seconds == 0
    finish(world)


def test_an_admitted_run_shows_its_cluster_queue_and_flavors() -> None:
    """They are recorded once, and removed when no Job is queued."""
    world = a_training_world()
    queue = world.status.queue
    assert (queue.cluster_queue, queue.flavors, queue.since) == ("gpus", {"nvidia.com/gpu": "h100"}, at(60))
    assert world.events.count("Normal QuotaReserved") == 1
    world.run_pod()
    world.settle()
    assert world.status.queue is None


def test_workloads_are_requested_only_while_a_job_is_queued() -> None:
    """Later decisions of Kueue are visible in the Job."""
    world = a_waiting_world()
    asked = [job.meta.name for job in jobs_without_admission(world.finetune, world.observed())]
    assert asked == [job["metadata"]["name"] for job in world.queued()]
    world = a_training_world()
    assert not jobs_without_admission(world.finetune, world.observed())
    world.preempt()
    assert jobs_without_admission(world.finetune, world.observed())
    assert not jobs_without_admission(World().finetune, World().observed())


def test_the_admission_stays_in_the_status_without_further_requests() -> None:
    """It is read from the status."""
    world = a_training_world()
    before = world.status.queue
    world.kueue = False
    world.report_progress(world.live_pods()[0])
    world.settle()
    assert world.status.queue == before


def test_a_preempted_run_is_queued_again_and_resumes_without_a_retry() -> None:
    """The pod saves a checkpoint. The preemption is counted, even with retry.limit 0."""
    world = a_training_world(retry={"limit": 0})
    world.seconds += 100
    world.preempt()
    world.reconcile()
    assert condition(world, "Ready").reason == "Stopping"
    assert "is saving a checkpoint" in condition(world, "Ready").message
    world.settle()
    assert (world.status.phase, world.status.queue.cluster_queue) == (Phase.QUEUED, "")
    assert "it was suspended: Preempted to accommodate" in condition(world, "Ready").message
    assert (entry(world, Stage.TRAIN).preemptions, world.status.run.preemptions) == (1, 1)
    assert entry(world, Stage.TRAIN).state is StageState.PENDING
    assert world.status.run.gpu_seconds == 100
    finish(world)
    assert entry(world, Stage.TRAIN).attempts == 2
    assert world.events.count("Warning Preempted") == 1
    assert world.events.count("Normal QuotaReserved") == 2


def test_a_preemption_is_counted_if_its_pod_disappears_first() -> None:
    """The pod is deleted when it ends; pods of earlier attempts may still exist."""
    world = a_training_world()
    world.seconds += 50
    world.fail(world.live_pods()[0], Reason.S3_UNREACHABLE)
    world.settle()
    world.seconds += 50
    world.start(world.live_pods()[0])
    world.settle()
    world.seconds += 50
    pod = world.live_pods()[0]
    world.preempt()
    world.lose(pod)
    world.reconcile()
    assert (entry(world, Stage.TRAIN).state, world.status.run.preemptions) == (StageState.PENDING, 1)
    used = world.status.run.gpu_seconds
    world.seconds += 3600
    world.settle()
    assert (world.status.run.gpu_seconds, world.status.run.preemptions) == (used, 1)
    assert world.events.count("Warning Preempted") == 1


def test_a_queued_run_can_be_suspended() -> None:
    """The Job leaves the queue, and a new one joins it later."""
    world = a_waiting_world()
    world.edit(suspend=True)
    world.settle()
    assert (world.status.phase, world.live_jobs(), world.status.queue) == (Phase.SUSPENDED, [], None)
    world.edit(suspend=False)
    world.settle()
    assert world.status.phase is Phase.QUEUED


@pytest.mark.parametrize(
    "queue", [{"name": "team-b"}, {"name": "team-a", "priorityClass": "high"}, None], ids=["queue", "priority", "none"]
)
def test_a_changed_queue_replaces_the_job(queue: Json | None) -> None:
    """A Job with outdated labels is replaced, as after a change of the node selector."""
    world = a_waiting_world()
    (before,) = world.queued()
    world.edit(queue=queue)
    world.settle()
    (after,) = world.live_jobs()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["metadata"]["labels"].get(LABEL_QUEUE, "") == (queue or {}).get("name", "")
    assert world.status.phase is Phase.QUEUED


def test_an_edit_of_training_removes_the_obsolete_job_from_the_queue() -> None:
    """The obsolete Job leaves the queue before the next one joins it."""
    world = a_waiting_world()
    world.edit(training={"learningRate": "3e-4"})
    world.settle()
    assert len(world.queued()) == 1
    assert len(world.created) == 3


def test_without_kueue_a_queued_run_does_not_start() -> None:
    """The platform team has to act. The run continues once Kueue is installed."""
    world = a_waiting_world()
    world.kueue = False
    world.settle()
    assert not world.live_pods()
    failure = world.status.failure
    assert (failure.reason, failure.actor, failure.stage) == (Reason.QUEUE_UNAVAILABLE, Actor.PLATFORM, Stage.TRAIN)
    assert "this cluster has no Kueue" in failure.message
    assert world.plan().requeue_after is not None
    world.kueue = True
    world.settle()
    assert (world.status.phase, world.status.failure) == (Phase.QUEUED, None)
    finish(world)


def test_a_job_without_a_workload_is_reported_after_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kueue may be down, or the priority class may be missing: only Kueue's log says so."""
    world = World(queue={"name": "team-a", "priorityClass": "urgent"})
    monkeypatch.setattr(world, "queued", list)
    world.settle()
    world.run_pod()
    world.settle()
    assert world.status.phase is Phase.QUEUED
    world.seconds += 11
    world.settle()
    assert world.status.failure.reason == Reason.QUEUE_UNAVAILABLE
    assert "the WorkloadPriorityClass urgent exists" in world.status.failure.message


def test_a_missing_queue_is_reported_with_a_remedy_for_the_user() -> None:
    """The message names the queue and the namespace, the remedy the field."""
    world = a_waiting_world(queue={"name": "taem-a"})
    world.waits_for = "LocalQueue taem-a doesn't exist"
    world.settle()
    failure = world.status.failure
    assert (failure.reason, failure.actor) == (Reason.QUEUE_NOT_FOUND, Actor.USER)
    assert failure.message == "LocalQueue taem-a does not exist in the namespace team-a"
    assert "spec.queue.name" in failure.remedy
    world.waits_for = ""
    world.settle()
    assert world.status.phase is Phase.QUEUED


def test_the_queue_label_of_an_object_selects_its_queue() -> None:
    """As for every kind that Kueue supports. The spec takes precedence."""
    body = a_finetune_body()
    body["metadata"]["labels"] = {LABEL_QUEUE: "team-a", LABEL_PRIORITY: "high"}
    spec = finetune_of(body).spec
    assert spec is not None
    assert spec.queue is not None
    assert (spec.queue.name, spec.queue.priority_class) == ("team-a", "high")
    body["spec"]["queue"] = {"name": "team-b"}
    spec = finetune_of(body).spec
    assert spec is not None
    assert spec.queue is not None
    assert (spec.queue.name, spec.queue.priority_class) == ("team-b", "")


def test_any_suspended_job_is_queued() -> None:
    """With manageJobsWithoutQueueName prepare waits too, and a user may suspend a Job."""
    world = World()
    world.settle()
    (job,) = world.live_jobs()
    job["spec"]["suspend"] = True
    world.settle()
    assert (world.status.phase, condition(world, "Ready").reason) == (Phase.QUEUED, "JobSuspended")
    job["metadata"]["labels"][LABEL_QUEUE] = "default"
    world.settle()
    assert (world.status.phase, world.status.queue.name) == (Phase.QUEUED, "default")


def test_without_permission_to_read_workloads_the_queue_is_still_shown() -> None:
    """An outdated Role loses the reasons, not the run."""
    world = a_waiting_world()
    job, finetune = world.queued()[0], world.finetune
    world.finetune_body["status"].pop("queue")
    observed = world.observed()
    assert observed.kueue is not None
    decided = plan(finetune, replace(observed, kueue=None), world.platform, world.now)
    assert decided.status is not None
    assert decided.status.phase is Phase.QUEUED
    message = next(each.message for each in decided.status.conditions if each.type == "Ready")
    assert message == f"Job {job['metadata']['name']} is waiting in the queue team-a"


def test_a_queued_run_is_reconciled_less_often_over_time() -> None:
    """No watch reports a changed reason, and a thousand objects may wait for one quota."""
    world = a_waiting_world()
    waits = []
    for _ in range(4):
        again = world.plan().requeue_after
        assert again is not None
        waits.append(again.total_seconds())
        world.seconds += 600
    assert waits == [3, 150, 300, 300]


def test_a_quota_being_released_is_reconciled_soon() -> None:
    """The admission is hours old, and Kueue will soon give the new reason."""
    world = a_training_world()
    world.seconds += 7200
    world.preempt()
    observed = world.observed()
    assert observed.kueue is not None
    (waits,) = observed.kueue.workloads
    stopping = KueueState(installed=True, workloads=(replace(waits, cluster_queue="gpus", since=at(60)),))
    decided = plan(world.finetune, replace(observed, kueue=stopping), world.platform, world.now)
    assert decided.requeue_after == timedelta(seconds=3)


def a_workload(*conditions: Json, **parts: Any) -> Json:
    """Return a Workload as the API server sends it."""
    metadata = {"name": "job-x-1a2b3", "creationTimestamp": text(at(0)), "labels": {LABEL_JOB: "uid-of-x"}}
    status = {"conditions": list(conditions), **parts.pop("status", {})}
    return {"metadata": metadata, "spec": {"queueName": "team-a", **parts}, "status": status}


def a_condition(kind: str, status: str, seconds: float, message: str = "") -> Json:
    """Return a condition of a Workload."""
    return {"type": kind, "status": status, "lastTransitionTime": text(at(seconds)), "message": message}


ADMISSION = {
    "clusterQueue": "gpus",
    "podSetAssignments": [{"name": "main", "flavors": {"cpu": "default", "nvidia.com/gpu": "h100"}}],
}


def test_a_workload_without_status_waits_since_its_creation() -> None:
    """It has no conditions yet."""
    body = a_workload()
    del body["status"]
    workload = workload_of(body)
    assert (workload.job, workload.queue, workload.since, workload.waits_for) == ("uid-of-x", "team-a", at(0), "")


def test_a_workload_without_quota_has_the_reason_of_kueue() -> None:
    """In Kueue's words, with the reason of the last eviction."""
    lacks = a_condition("QuotaReserved", "False", 70, "couldn't assign flavors")
    workload = workload_of(a_workload(lacks, a_condition("Evicted", "True", 70, "Preempted by another")))
    assert (workload.waits_for, workload.stopped) == ("couldn't assign flavors", "Preempted by another")
    assert (workload.cluster_queue, workload.since) == ("", at(70))


def test_a_workload_with_quota_may_wait_for_admission_checks() -> None:
    """For example for a check that provisions a node."""
    checks = [{"name": "add-a-node", "state": "Pending", "message": "asked"}, {"name": "budget", "state": "Ready"}]
    reserved = a_condition("QuotaReserved", "True", 20, "Quota reserved")
    workload = workload_of(a_workload(reserved, status={"admission": ADMISSION, "admissionChecks": checks}))
    assert (workload.cluster_queue, workload.since) == ("gpus", at(20))
    assert workload.waits_for.endswith("not all admission checks have passed (add-a-node: Pending: asked)")


def test_an_admitted_workload_has_its_flavors() -> None:
    """The flavor of each resource. A past eviction is not reported."""
    conditions = [
        a_condition("QuotaReserved", "True", 20, "Quota reserved"),
        a_condition("Admitted", "True", 30, "The workload is admitted"),
        a_condition("Evicted", "False", 20, "Previously: Preempted"),
    ]
    workload = workload_of(a_workload(*conditions, status={"admission": ADMISSION}))
    assert dict(workload.flavors) == {"cpu": "default", "nvidia.com/gpu": "h100"}
    assert (workload.since, workload.waits_for, workload.stopped) == (at(30), "", "")


def test_a_deactivated_workload_has_a_remedy() -> None:
    """Kueue ignores it until it is activated."""
    lacks = a_condition("QuotaReserved", "False", 70, "The workload is deactivated")
    waits_for = workload_of(a_workload(lacks, active=False)).waits_for
    assert waits_for == "the Workload job-x-1a2b3 is deactivated: set its spec.active to true"

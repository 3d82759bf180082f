"""Jobs that Kueue holds back, admits and stops: what is concluded from it, and what is not."""

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
    """Return a world in which the Job that trains waits in its queue."""
    world = World(**{"queue": QUEUE, **parts})
    world.settle()
    world.run_pod()
    world.settle()
    assert world.queued(), world.status
    return world


def a_training_world(**parts: Any) -> World:
    """Return a world in which the Job that trains has its quota and works."""
    world = a_waiting_world(**parts)
    world.seconds += 60
    world.admit()
    world.settle()
    world.start(world.live_pods()[0])
    world.settle()
    assert world.status.phase is Phase.TRAINING, world.status
    return world


def finish(world: World) -> None:
    """Let everything go well from now on."""
    for _ in range(4):
        world.admit()
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED, world.status


def test_only_the_job_that_trains_waits_in_the_queue() -> None:
    """A mistake shows before anybody waits for a GPU, and a trained model is published without waiting again."""
    world = a_waiting_world(queue={"name": "team-a", "priorityClass": "high"})
    finish(world)
    jobs = {name.split("-")[1]: job for name, job in world.jobs.items()}
    queued = {stage: {LABEL_QUEUE, LABEL_PRIORITY} & set(job["metadata"]["labels"]) for stage, job in jobs.items()}
    assert queued == {"prepare": set(), "train": {LABEL_QUEUE, LABEL_PRIORITY}, "publish": set()}
    assert [stage for stage, job in jobs.items() if "suspend" in job["spec"]] == ["train"]


def test_without_a_queue_nothing_is_queued() -> None:
    """Clusters without Kueue never hear of it."""
    world = World()
    finish(world)
    assert not any(LABEL_QUEUE in job["metadata"]["labels"] or "suspend" in job["spec"] for job in world.jobs.values())


def test_no_stage_runs_again_for_another_queue() -> None:
    """A queue changes no output, so it is part of no key."""
    plain, queued = parsed(a_spec()), parsed(a_spec(queue={"name": "team-a", "priorityClass": "high"}))
    assert keys.prepare_inputs(plain) == keys.prepare_inputs(queued)
    resolved = {"baseModel": "commit", "dataset": "sha256:1"}
    assert keys.prepare_key(plain, resolved) == keys.prepare_key(queued, resolved)
    assert keys.train_key("prepared", plain) == keys.train_key("prepared", queued)
    assert keys.evaluate_key("trained", plain) == keys.evaluate_key("trained", queued)
    assert keys.publish_key("judged", plain) == keys.publish_key("judged", queued)


def test_what_waits_is_queued_and_says_where_since_when_and_for_what() -> None:
    """It is on its way, and nobody's fault: neither stalled nor failed."""
    world = a_waiting_world()
    assert world.status.phase is Phase.QUEUED
    assert (condition(world, "Reconciling").status, condition(world, "Stalled").status) == ("True", "False")
    assert condition(world, "Ready").reason == "Queued"
    message = condition(world, "Ready").message
    assert "is waiting in the queue team-a since 2026-11-21 12:00:00 UTC: insufficient unused quota" in message
    assert (world.status.queue.name, world.status.queue.cluster_queue) == ("team-a", "")


def test_waiting_is_no_work() -> None:
    """Days in the queue count against no limit, and no pod of them is a retry."""
    world = a_waiting_world(maxRuntime="10m", maxGpuHours="0.5", stallTimeout="5m", retry={"limit": 0})
    for _ in range(50):
        world.seconds += 3600
        world.settle()
        assert world.status.phase is Phase.QUEUED
    assert world.status.run.gpu_seconds == 0
    finish(world)


def test_what_has_its_quota_says_whose() -> None:
    """The ClusterQueue and the flavor of each resource are recorded once, and removed when nothing is queued."""
    world = a_training_world()
    queue = world.status.queue
    assert (queue.cluster_queue, queue.flavors, queue.since) == ("gpus", {"nvidia.com/gpu": "h100"}, at(60))
    assert world.events.count("Normal QuotaReserved") == 1
    world.run_pod()
    world.settle()
    assert world.status.queue is None


def test_kueue_is_asked_only_while_it_has_something_to_say() -> None:
    """What it decides later shows in the Job."""
    world = a_waiting_world()
    asked = [job.meta.name for job in jobs_without_admission(world.finetune, world.observed())]
    assert asked == [job["metadata"]["name"] for job in world.queued()]
    world = a_training_world()
    assert not jobs_without_admission(world.finetune, world.observed())
    world.preempt()
    assert jobs_without_admission(world.finetune, world.observed())
    assert not jobs_without_admission(World().finetune, World().observed())


def test_the_quota_stays_known_although_kueue_is_not_asked_again() -> None:
    """It is in the status."""
    world = a_training_world()
    before = world.status.queue
    world.kueue = False
    world.hear(world.live_pods()[0])
    world.settle()
    assert world.status.queue == before


def test_what_is_preempted_waits_again_and_goes_on_without_a_retry() -> None:
    """The pod saves a checkpoint; it is counted as preempted, even where nothing may be tried again."""
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


def test_a_preemption_is_counted_although_its_pod_was_never_seen_to_end() -> None:
    """It goes the moment it has ended; pods of earlier tries may still be there."""
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


def test_a_user_may_suspend_what_waits() -> None:
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
def test_a_job_moves_to_another_queue_by_being_made_anew(queue: Json | None) -> None:
    """One whose labels are no longer what the spec says is replaced, as with another node selector."""
    world = a_waiting_world()
    (before,) = world.queued()
    world.edit(queue=queue)
    world.settle()
    (after,) = world.live_jobs()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["metadata"]["labels"].get(LABEL_QUEUE, "") == (queue or {}).get("name", "")
    assert world.status.phase is Phase.QUEUED


def test_an_edit_of_what_is_trained_leaves_no_job_in_the_queue() -> None:
    """The obsolete one gives up its place before the next one asks for its own."""
    world = a_waiting_world()
    world.edit(training={"learningRate": "3e-4"})
    world.settle()
    assert len(world.queued()) == 1
    assert len(world.created) == 3


def test_where_there_is_no_kueue_nothing_runs_without_its_quota() -> None:
    """The platform has to act; once Kueue is there, it goes on."""
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


def test_a_job_that_kueue_does_not_take_in_is_told_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controller may be down, or the priority class may not exist: nothing but Kueue's log says so."""
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


def test_a_queue_that_does_not_exist_is_the_users_to_mend() -> None:
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


def test_the_labels_of_an_object_are_its_queue() -> None:
    """As for every other kind that Kueue knows; what the spec says goes first."""
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


def test_any_job_that_is_held_back_waits() -> None:
    """Where Kueue takes every Job, prepare waits too; and a Job may be suspended by hand."""
    world = World()
    world.settle()
    (job,) = world.live_jobs()
    job["spec"]["suspend"] = True
    world.settle()
    assert (world.status.phase, condition(world, "Ready").reason) == (Phase.QUEUED, "JobSuspended")
    job["metadata"]["labels"][LABEL_QUEUE] = "default"
    world.settle()
    assert (world.status.phase, world.status.queue.name) == (Phase.QUEUED, "default")


def test_one_who_may_not_ask_kueue_knows_at_least_the_queue() -> None:
    """An older Role costs the reasons, not the run."""
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


def test_what_waits_is_looked_at_the_more_seldom_the_longer_it_lasts() -> None:
    """Nothing tells that Kueue has changed its mind about the reason; a thousand may wait for one quota."""
    world = a_waiting_world()
    waits = []
    for _ in range(4):
        again = world.plan().requeue_after
        assert again is not None
        waits.append(again.total_seconds())
        world.seconds += 600
    assert waits == [3, 150, 300, 300]


def test_a_quota_that_is_being_given_back_is_looked_at_soon() -> None:
    """It was given hours ago, and in a moment Kueue will say what the run waits for now."""
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


def test_a_workload_that_kueue_has_not_looked_at_waits_since_it_was_made() -> None:
    """It has no status at all."""
    body = a_workload()
    del body["status"]
    workload = workload_of(body)
    assert (workload.job, workload.queue, workload.since, workload.waits_for) == ("uid-of-x", "team-a", at(0), "")


def test_a_workload_without_quota_says_what_it_lacks() -> None:
    """In Kueue's words, and why it was stopped before."""
    lacks = a_condition("QuotaReserved", "False", 70, "couldn't assign flavors")
    workload = workload_of(a_workload(lacks, a_condition("Evicted", "True", 70, "Preempted by another")))
    assert (workload.waits_for, workload.stopped) == ("couldn't assign flavors", "Preempted by another")
    assert (workload.cluster_queue, workload.since) == ("", at(70))


def test_a_workload_with_quota_may_wait_for_admission_checks() -> None:
    """Such as one that adds a node."""
    checks = [{"name": "add-a-node", "state": "Pending", "message": "asked"}, {"name": "budget", "state": "Ready"}]
    reserved = a_condition("QuotaReserved", "True", 20, "Quota reserved")
    workload = workload_of(a_workload(reserved, status={"admission": ADMISSION, "admissionChecks": checks}))
    assert (workload.cluster_queue, workload.since) == ("gpus", at(20))
    assert workload.waits_for.endswith("not all admission checks have passed (add-a-node: Pending: asked)")


def test_an_admitted_workload_says_what_it_got() -> None:
    """The flavor of each resource; an eviction that is over is no news."""
    conditions = [
        a_condition("QuotaReserved", "True", 20, "Quota reserved"),
        a_condition("Admitted", "True", 30, "The workload is admitted"),
        a_condition("Evicted", "False", 20, "Previously: Preempted"),
    ]
    workload = workload_of(a_workload(*conditions, status={"admission": ADMISSION}))
    assert dict(workload.flavors) == {"cpu": "default", "nvidia.com/gpu": "h100"}
    assert (workload.since, workload.waits_for, workload.stopped) == (at(30), "", "")


def test_a_deactivated_workload_says_what_brings_it_back() -> None:
    """Kueue leaves it alone until then."""
    lacks = a_condition("QuotaReserved", "False", 70, "The workload is deactivated")
    waits_for = workload_of(a_workload(lacks, active=False)).waits_for
    assert waits_for == "the Workload job-x-1a2b3 is deactivated: set its spec.active to true"

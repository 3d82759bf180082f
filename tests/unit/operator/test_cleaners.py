"""What a cleaner, a TTL, a lost node or `kubectl delete job` takes away changes no result and starts no loop."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, condition, entry, labels, run_to_the_end
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState


def a_failed_world(stage: Stage, reason: Reason, message: str, **parts: Any) -> World:
    """Return a world in which a stage has failed for good."""
    world = a_world_at(stage, **parts)
    world.seconds += 3600
    world.fail(world.live_pods()[0], reason, message)
    world.settle()
    assert world.status.phase is Phase.FAILED
    return world


FAILURES = [
    (Stage.PREPARE, Reason.DATASET_MALFORMED, "line 7 of calls.jsonl"),
    (Stage.TRAIN, Reason.TRAINING_DIVERGED, "the loss rose above guessing at step 40"),
    (Stage.PUBLISH, Reason.HUB_WRITE_DENIED, "403 Forbidden"),
]


@pytest.mark.parametrize(("stage", "reason", "message"), FAILURES)
def test_a_failed_run_stays_failed_when_its_job_is_cleaned_up(stage: Stage, reason: Reason, message: str) -> None:
    """Proves that reason, message and remedy stay, that no Job is created, and that the status is not written again."""
    world = a_failed_world(stage, reason, message)
    before, created, writes = world.status, list(world.created), world.status_writes
    for _ in range(3):
        world.clean_up()
        world.seconds += 100
        world.settle()
    assert not world.jobs
    assert world.created == created
    assert (world.status, world.status_writes) == (before, writes)
    assert (world.status.failure.reason, world.status.failure.message) == (reason, message)
    assert world.status.failure.final


@pytest.mark.parametrize(("stage", "reason", "message"), FAILURES)
def test_a_failed_run_keeps_its_reason_when_only_its_pod_is_gone(stage: Stage, reason: Reason, message: str) -> None:
    """An autoscaler removes the node and PodGC the pod, while the Job stays: the cause is not replaced by PodLost."""
    world = a_failed_world(stage, reason, message)
    before, events = world.status, list(world.events)
    world.pods.clear()
    world.seconds += 600
    world.settle()
    world.restart_operator()
    world.settle()
    assert world.status == before
    assert world.events == events


def test_a_ttl_repeats_no_training_that_diverged() -> None:
    """With a TTL of a minute, days of waiting cost no more GPU time than the one run that failed."""
    world = a_failed_world(Stage.TRAIN, Reason.TRAINING_DIVERGED, "diverged")
    world.ttl = 60
    used = world.status.run.gpu_seconds
    for _ in range(40):
        world.seconds += 3600
        world.settle()
    assert labels(world) == ["prepare", "train"]
    assert world.status.run.gpu_seconds == used


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_a_run_whose_failed_job_was_cleaned_up_is_tried_again_when_asked(how: str) -> None:
    """By an edit that changes no key, or by the annotation."""
    world = a_failed_world(Stage.TRAIN, Reason.TRAINING_DIVERGED, "diverged")
    world.clean_up()
    world.settle()
    if how == "edit":
        world.edit(retry={"limit": 5})
    else:
        world.request("now")
    world.reconcile()
    assert world.status.failure is None
    run_to_the_end(world)


def test_a_ttl_of_a_succeeded_job_repeats_nothing() -> None:
    """A cleaner that takes every Job as soon as it has ended does not disturb a run that goes well."""
    world = World()
    world.ttl = 60
    for _ in range(6):
        world.settle()
        world.seconds += 100
        world.run_pod()
    world.seconds += 3600
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish"]


@pytest.mark.parametrize(
    ("failure", "job_stays"),
    [
        ({"reason": "DatasetMalformed", "exitCode": 65}, True),
        ({"reason": "Evicted"}, True),
        ({"reason": "NoProgress"}, True),
        ({"reason": "SecretNotFound"}, False),
        ({"reason": "InvalidSpec"}, False),
    ],
)
def test_a_failure_that_an_older_operator_wrote_is_read_without_the_field_final(
    failure: dict[str, Any], job_stays: bool
) -> None:
    """What a container ended with is final; what kept a pod from starting is looked at again."""
    world = a_failed_world(Stage.PREPARE, Reason.DATASET_MALFORMED, "line 7")
    old = world.finetune_body["status"]["failure"]
    for name in ("final", "exitCode"):
        old.pop(name, None)
    old.update(failure)
    world.finetune_body["status"]["run"].pop("requestToken")
    world.clean_up()
    world.settle()
    assert (world.status.phase is Phase.FAILED) == job_stays
    assert len(world.created) == (1 if job_stays else 2)


def test_a_spec_that_an_operator_cannot_read_does_not_reopen_a_failed_run() -> None:
    """After a rollback and another upgrade of the operator the run is still failed, with its own reason."""
    world = a_failed_world(Stage.PREPARE, Reason.DATASET_MALFORMED, "line 7")
    spec, before = world.finetune_body["spec"], world.status
    world.finetune_body["spec"] = {**spec, "future": True}
    world.settle()
    world.finetune_body["spec"] = spec
    world.clean_up()
    world.settle()
    assert world.status == before
    assert labels(world) == ["prepare"]


# Jobs that are deleted while they work


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH])
def test_a_job_that_is_deleted_by_hand_at_work_is_created_again(stage: Stage) -> None:
    """The run resumes, and the status counts it."""
    world = a_world_at(stage)
    world.settle()
    (job,) = world.live_jobs()
    world.delete_job(job)
    world.settle()
    assert "was deleted by another client" in condition(world, "Reconciling").message or world.live_pods()
    assert entry(world, stage).recreations == 1
    run_to_the_end(world)


@pytest.mark.parametrize("limit", [0, 2])
def test_a_job_that_is_deleted_again_and_again_ends_the_run(limit: int) -> None:
    """spec.retry.limit bounds it, the failure says what to do, and asking begins the count anew."""
    world = a_world_at(Stage.TRAIN, retry={"limit": limit})
    world.settle()
    for _ in range(10):
        for job in world.live_jobs():
            world.delete_job(job)
        world.seconds += 60
        world.settle()
        for pod in world.live_pods():
            world.start(pod)
        world.settle()
    assert labels(world).count("train") == limit + 1
    assert world.status.phase is Phase.FAILED
    assert (world.status.failure.reason, world.status.failure.final) == (Reason.JOB_DELETED, True)
    assert f"deleted {limit + 1} times" in world.status.failure.message
    assert entry(world, Stage.TRAIN).state is StageState.FAILED
    world.request("now")
    run_to_the_end(world)


@pytest.mark.parametrize(
    "change",
    [{"training": {"checkpoint": {"everySteps": 5}}}, {"suspend": True}, {"training": {"learningRate": "5e-4"}}],
)
def test_a_job_that_the_operator_deletes_itself_is_not_counted(change: dict[str, Any]) -> None:
    """Neither for an edit nor for a suspension, however often."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    world.settle()
    world.edit(**change)
    world.settle()
    world.edit(suspend=False)
    run_to_the_end(world)
    assert entry(world, Stage.TRAIN).recreations == 0


def test_an_operator_that_dies_after_it_has_deleted_a_job_for_a_suspension_counts_nothing() -> None:
    """The Job is gone before the status is written, and the run resumes with all its retries."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    world.settle()
    world.edit(suspend=True)
    world.reconcile(steps=1)
    world.settle()
    world.edit(suspend=False)
    run_to_the_end(world)


# Loops


def test_a_complete_job_whose_pods_are_never_seen_ends_the_run_after_the_limit() -> None:
    """As with MultiKueue, where a Job runs in another cluster: it is not repeated for ever."""
    world = World(retry={"limit": 2})
    for _ in range(12):
        world.reconcile()
        for job in world.live_jobs():
            world._finish(job, "Complete", "CompletionsReached", "")
        world.seconds += 3600
        world.settle_without_pods()
    assert labels(world) == ["prepare"] * 3
    assert (world.status.failure.reason, world.status.failure.final) == (Reason.REPORT_LOST, True)
    assert "3 times" in world.status.failure.message
    assert "another cluster" in world.status.failure.remedy


def test_evictions_are_counted_although_their_pods_are_cleaned_up() -> None:
    """PodGC removes evicted pods: what is no longer there still counts."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 2})
    for _ in range(8):
        for pod in world.live_pods():
            world.evict(pod, "The node was low on resource: memory.")
            world.reconcile()
            world.lose(pod)
        world.settle()
        world.seconds += 10
        for pod in world.live_pods():
            world.start(pod)
        world.reconcile()
    assert world.status.failure.reason == Reason.EVICTED
    assert entry(world, Stage.TRAIN).evictions == 3


def test_a_job_whose_annotations_something_removes_is_not_replaced_for_ever() -> None:
    """A policy that keeps only known annotations leaves nothing to compare with."""
    world = a_world_at(Stage.PREPARE)
    (job,) = world.live_jobs()
    job["metadata"]["annotations"] = {}
    world.settle()
    assert world.live_jobs() == [job]
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED)
    world.settle()
    assert world.status.phase is Phase.FAILED
    assert labels(world) == ["prepare"]


def test_a_failure_without_a_pod_promises_no_retry() -> None:
    """The pod was gone before its report was read: the remedy says how to go on."""
    world = a_world_at(Stage.PREPARE)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED)
    world.job_controller()
    world.pods.clear()
    world.settle()
    assert (world.status.failure.reason, world.status.failure.exit_code) == (Reason.POD_LOST, 65)
    assert "requested-at" in world.status.failure.remedy


# Upgrades of the operator


def as_an_older_operator_made_it(job: dict[str, Any]) -> None:
    """Give the Job a digest of the first form and no count of memory kills."""
    annotations = job["metadata"]["annotations"]
    annotations["tunemill.dev/pod"] = "2-0ld0ld0l"
    annotations.pop("tunemill.dev/memory-kills", None)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.PUBLISH])
def test_a_running_job_of_an_older_operator_is_left_alone(stage: Stage) -> None:
    """Also after an edit: a digest of another version says nothing about a pod that has started."""
    world = a_world_at(stage)
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    assert world.reconcile().actions == ()
    world.edit(maxRuntime="9h")
    assert world.reconcile().actions == ()


def test_a_waiting_job_of_an_older_operator_is_replaced_only_after_an_edit() -> None:
    """Nothing is lost, and a corrected Secret name takes effect."""
    world = World()
    world.settle()
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    assert world.reconcile().actions == ()
    world.edit(dataset={"credentialsSecretRef": {"name": "other"}})
    assert len(world.reconcile().actions) == 1


def test_a_pod_of_an_older_operator_that_needs_too_much_memory_is_followed_by_a_smaller_one() -> None:
    """Its Job does not say how often memory was not enough before."""
    world = a_world_at(Stage.TRAIN)
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    world.kill_for_memory(world.live_pods()[0])
    world.settle()
    (again,) = world.live_jobs()
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    run_to_the_end(world)


def test_a_finished_object_is_not_touched_when_everything_is_cleaned_up() -> None:
    """The status is all that is needed."""
    world = a_finished_world()
    before = world.status
    world.clean_up()
    world.seconds += 3600
    world.settle()
    assert world.status == before

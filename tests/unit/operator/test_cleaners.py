"""A deleted Job or pod (by a cleaner, a TTL, a lost node or kubectl) changes no result and causes no loop."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, condition, entry, labels, run_to_the_end
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState


def a_failed_world(stage: Stage, reason: Reason, message: str, **parts: Any) -> World:
    """Return a world in which a stage has failed permanently."""
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
    """Reason, message and remedy stay, no Job is created, and the status is not written again."""
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


def test_a_ttl_does_not_repeat_a_diverged_training() -> None:
    """With a TTL of a minute, days of waiting cost no more GPU time than the failed run."""
    world = a_failed_world(Stage.TRAIN, Reason.TRAINING_DIVERGED, "diverged")
    world.ttl = 60
    used = world.status.run.gpu_seconds
    for _ in range(40):
        world.seconds += 3600
        world.settle()
    assert labels(world) == ["prepare", "train"]
    assert world.status.run.gpu_seconds == used


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_a_failed_run_with_a_deleted_job_is_retried_on_request(how: str) -> None:
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


def test_a_ttl_of_succeeded_jobs_reruns_no_stage() -> None:
    """A cleaner that deletes every finished Job does not disturb a run."""
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
def test_a_failure_written_by_an_older_operator_is_read(failure: dict[str, Any], job_stays: bool) -> None:
    """Without the field final, container failures are final; failures to start are evaluated again."""
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


def test_an_unreadable_spec_does_not_reopen_a_failed_run() -> None:
    """After a rollback and an upgrade of the operator the run is still Failed with its own reason."""
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
def test_a_running_job_that_is_deleted_is_recreated(stage: Stage) -> None:
    """The run resumes, and the status counts the deletion."""
    world = a_world_at(stage)
    world.settle()
    (job,) = world.live_jobs()
    world.delete_job(job)
    world.settle()
    assert "was deleted by another client" in condition(world, "Reconciling").message or world.live_pods()
    assert entry(world, stage).recreations == 1
    run_to_the_end(world)


@pytest.mark.parametrize("limit", [0, 2])
def test_repeated_deletions_of_a_job_end_the_run(limit: int) -> None:
    """spec.retry.limit is the bound, the failure has a remedy, and a request resets the count."""
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
def test_a_job_deleted_by_the_operator_is_not_counted(change: dict[str, Any]) -> None:
    """Neither for an edit nor for a suspension, however often."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    world.settle()
    world.edit(**change)
    world.settle()
    world.edit(suspend=False)
    run_to_the_end(world)
    assert entry(world, Stage.TRAIN).recreations == 0


def test_a_crash_after_deleting_a_job_for_a_suspension_counts_no_deletion() -> None:
    """The Job is gone before the status is written, and the run resumes with all its retries."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    world.settle()
    world.edit(suspend=True)
    world.reconcile(steps=1)
    world.settle()
    world.edit(suspend=False)
    run_to_the_end(world)


# Loops


def test_complete_jobs_without_pods_end_the_run_after_the_limit() -> None:
    """As with MultiKueue, where the Job runs in another cluster: it is not repeated forever."""
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


def test_evictions_are_counted_after_their_pods_are_deleted() -> None:
    """PodGC removes evicted pods."""
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


def test_a_job_with_removed_annotations_is_not_replaced_repeatedly() -> None:
    """A policy that keeps only known annotations leaves no digest to compare with."""
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
    """The pod was deleted before its report was read: the remedy says how to continue."""
    world = a_world_at(Stage.PREPARE)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED)
    world.job_controller()
    world.pods.clear()
    world.settle()
    assert (world.status.failure.reason, world.status.failure.exit_code) == (Reason.POD_LOST, 65)
    assert "requested-at" in world.status.failure.remedy


# Upgrades of the operator


def as_an_older_operator_made_it(job: dict[str, Any]) -> None:
    """Give the Job a digest of the first version and no count of memory kills."""
    annotations = job["metadata"]["annotations"]
    annotations["tunemill.dev/pod"] = "2-0ld0ld0l"
    annotations.pop("tunemill.dev/memory-kills", None)


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.PUBLISH])
def test_a_running_job_of_an_older_operator_is_kept(stage: Stage) -> None:
    """Also after an edit: a digest of another version is not compared once the pod has started."""
    world = a_world_at(stage)
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    assert world.reconcile().actions == ()
    world.edit(maxRuntime="9h")
    assert world.reconcile().actions == ()


def test_a_waiting_job_of_an_older_operator_is_replaced_only_after_an_edit() -> None:
    """No work is lost, and a corrected Secret name takes effect."""
    world = World()
    world.settle()
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    assert world.reconcile().actions == ()
    world.edit(dataset={"credentialsSecretRef": {"name": "other"}})
    assert len(world.reconcile().actions) == 1


def test_an_oom_killed_pod_of_an_older_operator_is_retried_with_smaller_batches() -> None:
    """Its Job has no count of memory kills."""
    world = a_world_at(Stage.TRAIN)
    (job,) = world.live_jobs()
    as_an_older_operator_made_it(job)
    world.kill_for_memory(world.live_pods()[0])
    world.settle()
    (again,) = world.live_jobs()
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    run_to_the_end(world)


def test_a_finished_object_is_unchanged_after_a_cleanup() -> None:
    """The status is sufficient."""
    world = a_finished_world()
    before = world.status
    world.clean_up()
    world.seconds += 3600
    world.settle()
    assert world.status == before

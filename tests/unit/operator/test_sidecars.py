"""Pods with injected sidecars: a stage is judged by its own container, and its Job ends with it."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_world_at, condition, entry, labels
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase
from tunemill_operator.engine.observe import WarningEvent
from tunemill_operator.engine.plan import DeleteJob
from tunemill_operator.engine.sidecars import SIDECAR_TIMEOUT

NATIVE = {"native_sidecars": ["istio-proxy"]}
CLASSIC = {"classic_sidecars": ["istio-proxy"]}
BOTH = {"native_sidecars": ["istio-proxy"], "classic_sidecars": ["log-agent"]}
GRACE = int(SIDECAR_TIMEOUT.total_seconds())


def a_world(sidecars: dict[str, list[str]], stage: Stage | None = None, **parts: Any) -> World:
    """Return a world with sidecars in which the stage runs."""
    world = World(**parts)
    world.native_sidecars, world.classic_sidecars = sidecars.get("native_sidecars", []), []
    world.classic_sidecars = sidecars.get("classic_sidecars", [])
    for _ in range(30):
        world.settle()
        for pod in world.live_pods():
            world.start(pod)
            world.reconcile()
            if stage and entry(world, stage).state.value == "Running":
                return world
            world.seconds += 1
            world.succeed(pod)
        world.seconds += GRACE
    assert stage is None
    world.settle()
    return world


@pytest.mark.parametrize("sidecars", [NATIVE, CLASSIC, BOTH])
def test_a_run_with_sidecars_is_published(sidecars: dict[str, list[str]]) -> None:
    """Every stage runs once, and no pod stays."""
    world = a_world(sidecars)
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish"]
    assert [entry(world, stage).attempts for stage in Stage] == [1, 1, 1, 1]
    assert not world.live_pods()
    assert not world.live_jobs()


def test_a_job_is_deleted_after_the_report_of_its_stage_is_recorded() -> None:
    """A sidecar keeps the pod running: after the status write the pod has a short time to end by itself."""
    world = a_world(CLASSIC, Stage.PREPARE)
    (pod,) = world.live_pods()
    world.succeed(pod)
    assert pod["status"]["phase"] == "Running"
    decided = world.reconcile()
    assert decided.actions == ()
    assert condition(world, "Prepared").status == "True"
    assert decided.requeue_after is not None
    assert decided.requeue_after.total_seconds() <= GRACE
    world.seconds += GRACE
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [DeleteJob]
    world.settle()
    assert labels(world) == ["prepare", "train"]


def test_a_job_is_kept_until_its_report_is_recorded() -> None:
    """The operator dies before it writes the status: the Job is deleted only after the next one has written it."""
    world = a_world(CLASSIC, Stage.PREPARE)
    world.succeed(world.live_pods()[0])
    world.seconds += 10 * GRACE
    assert world.plan().actions == ()
    world.reconcile(steps=0)
    assert world.plan().actions == ()
    world.reconcile()
    assert [type(action) for action in world.plan().actions] == [DeleteJob]


def test_the_next_stage_does_not_wait_for_a_slow_sidecar() -> None:
    """The Job is being deleted and its stage has ended: it writes no outputs any more."""
    world = a_world(CLASSIC, Stage.PREPARE)
    world.succeed(world.live_pods()[0])
    world.reconcile()
    world.seconds += GRACE
    world.reconcile()
    world.reconcile()
    assert labels(world) == ["prepare", "train"]
    assert [job["metadata"].get("deletionTimestamp") is not None for job in world.jobs.values()] == [True, False]


@pytest.mark.parametrize("sidecars", [NATIVE, CLASSIC, BOTH])
@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE])
def test_a_permanent_failure_with_a_sidecar_ends_the_run(sidecars: dict[str, list[str]], stage: Stage) -> None:
    """With the reason of the stage, whatever the exit code of the sidecar, and no pod stays."""
    world = a_world(sidecars, stage)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED, "line 7 of calls.jsonl")
    for _ in range(3):
        world.settle()
        world.seconds += GRACE
    world.settle()
    failure = world.status.failure
    assert (failure.stage, failure.reason, failure.final) == (stage, Reason.DATASET_MALFORMED, True)
    assert failure.message == "line 7 of calls.jsonl"
    assert not world.live_pods()
    assert not world.live_jobs()
    assert world.events.count("Warning DatasetMalformed") == 1


@pytest.mark.parametrize("limit", [0, 2])
def test_a_failed_stage_with_a_sidecar_is_retried_up_to_the_limit(limit: int) -> None:
    """The pod never fails, so the Job controller does not retry: the operator replaces the Job and counts."""
    world = a_world(CLASSIC, Stage.PREPARE, retry={"limit": limit})
    for _ in range(20):
        for pod in world.live_pods():
            world.fail(pod, Reason.S3_UNREACHABLE, "no route")
        for _ in range(3):
            world.settle()
            world.seconds += GRACE
        for pod in world.live_pods():
            world.start(pod)
        world.reconcile()
    assert labels(world) == ["prepare"] * (limit + 1)
    assert world.status.phase is Phase.FAILED
    assert (world.status.failure.reason, world.status.failure.final) == (Reason.S3_UNREACHABLE, True)
    assert entry(world, Stage.PREPARE).retries == limit
    assert not world.live_pods()


def test_an_interrupted_stage_with_a_sidecar_costs_no_retry() -> None:
    """Only the container was killed."""
    world = a_world(CLASSIC, Stage.PREPARE, retry={"limit": 0})
    world.fail(world.live_pods()[0], Reason.INTERRUPTED)
    for _ in range(3):
        world.settle()
        world.seconds += GRACE
    assert world.status.failure is None
    assert labels(world) == ["prepare", "prepare"]
    assert entry(world, Stage.PREPARE).preemptions == 1


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE])
def test_an_oom_killed_stage_with_a_sidecar_is_retried_with_smaller_batches(stage: Stage) -> None:
    """As without a sidecar."""
    world = a_world(CLASSIC, stage)
    world.kill_for_memory(world.live_pods()[0])
    world.settle()
    assert labels(world) == ["prepare", "train", "train"]
    assert entry(world, stage).memory_kills == 1


def test_a_running_sidecar_is_not_a_running_stage() -> None:
    """While the train container waits, the run is Queued, although the sidecar runs."""
    world = a_world(NATIVE, Stage.PREPARE)
    world.succeed(world.live_pods()[0])
    world.settle()
    world.seconds += GRACE
    world.settle()
    (pod,) = world.live_pods()
    pod["status"]["initContainerStatuses"][0]["state"] = {"running": {"startedAt": "2026-11-21T12:00:01Z"}}
    world.settle()
    assert world.status.phase is Phase.QUEUED
    assert "is starting" in condition(world, "Reconciling").message


def test_a_sidecar_image_that_cannot_be_pulled_is_reported() -> None:
    """The stage cannot start before a native sidecar."""
    world = World()
    world.native_sidecars = ["istio-proxy"]
    world.settle()
    (pod,) = world.live_pods()
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "istio/proxyv2:0"'}
    pod["status"]["initContainerStatuses"][0]["state"] = {"waiting": waiting}
    world.reconcile()
    world.seconds += 120
    world.reconcile()
    assert (world.status.failure.stage, world.status.failure.reason) == ("prepare", Reason.IMAGE_PULL_FAILED)
    assert "istio/proxyv2:0" in world.status.failure.message


def test_a_failed_injected_init_container_is_named() -> None:
    """The stage never started, so it has not failed."""
    world = World(retry={"limit": 0})
    world.native_sidecars = ["istio-init"]
    world.settle()
    (pod,) = world.live_pods()
    ended = {"exitCode": 255, "reason": "Error", "message": "iptables: permission denied"}
    pod["status"]["initContainerStatuses"][0]["state"] = {"terminated": ended}
    pod["status"]["phase"] = "Failed"
    world.settle()
    assert (world.status.failure.stage, world.status.failure.reason) == ("prepare", Reason.SIDECAR_FAILED)
    assert "container istio-init" in world.status.failure.message
    assert "permission denied" in world.status.failure.message


def test_exit_codes_of_sidecars_do_not_affect_a_job() -> None:
    """The rules of the podFailurePolicy name the containers of stages."""
    world = a_world_at(Stage.TRAIN)
    job = next(job for name, job in world.jobs.items() if "-train-" in name)
    rules = [rule for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert {rule["onExitCodes"]["containerName"] for rule in rules} <= {"train", "evaluate"}
    assert len(rules) in {2, 4}


# Pods of others


def a_foreign_pod(world: World, **metadata: Any) -> None:
    """Create a pod of another owner with the operator's label."""
    world.pods["vllm-6d"] = {
        "metadata": {
            "name": "vllm-6d",
            "namespace": "team-a",
            "uid": "x1",
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-20T12:00:00Z",
            "labels": {"tunemill.dev/finetune": "support"},
            **metadata,
        },
        "status": {"phase": "Running"},
    }


@pytest.mark.parametrize(
    "owner",
    [
        [],
        [{"kind": "ReplicaSet", "name": "vllm-6d5", "uid": "rs", "controller": True}],
        [{"kind": "Job", "name": "support-import", "uid": "j", "controller": True}],
    ],
)
def test_a_foreign_pod_with_our_label_does_not_block(owner: list[dict[str, Any]]) -> None:
    """A Deployment that serves the model may have the label: ownership is decisive."""
    world = World()
    a_foreign_pod(world, ownerReferences=owner)
    world.settle()
    assert labels(world) == ["prepare"]


@pytest.mark.parametrize(
    "metadata",
    [
        {
            "ownerReferences": [
                {"kind": "Job", "name": "support-train-0123abcd", "uid": "gone", "controller": True},
            ]
        },
        {
            "labels": {
                "tunemill.dev/finetune": "support",
                "batch.kubernetes.io/job-name": "support-train-0123abcd",
            }
        },
    ],
)
def test_a_pod_of_a_deleted_job_blocks(metadata: dict[str, Any]) -> None:
    """It may still write a checkpoint, also when the Job was deleted with --cascade=orphan."""
    world = World()
    a_foreign_pod(world, **metadata)
    world.settle()
    assert labels(world) == []
    assert "vllm-6d" in condition(world, "Reconciling").message


def test_a_foreign_job_with_our_label_does_not_block() -> None:
    """Ownership is decisive for Jobs too."""
    world = World()
    world.settle()
    (job,) = world.jobs.values()
    world.delete_job(job)
    job["metadata"] |= {"name": "support-import", "uid": "j", "ownerReferences": []}
    world.jobs["support-import"] = job
    world.reconcile()
    assert len(labels(world)) == 2


def test_a_warning_about_a_foreign_pod_is_ignored() -> None:
    """It is not about the run."""
    world = a_world_at(Stage.PREPARE)
    a_foreign_pod(world)
    world.warning_events = (WarningEvent("x1", "FailedCreatePodSandBox", "no IP", world.now),)
    world.seconds += 600
    world.settle()
    assert world.status.failure is None

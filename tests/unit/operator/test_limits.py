"""Limits of a run, and how interrupted pods are counted."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_world_at, condition, entry, run_to_the_end
from tunemill_api.constants import ANNOTATION_RUN_SPEC
from tunemill_api.failures import Reason
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, Phase, StageState
from tunemill_operator.engine.plan import DeleteJob


def a_reporting_world(**parts: Any) -> World:
    """Return a world in which train runs and its progress has been written."""
    world = a_world_at(Stage.TRAIN, **parts)
    world.seconds += 1
    report_progress(world)
    return world


def report_progress(world: World) -> None:
    """Let the live pod report progress, and the operator write it."""
    world.report_progress(world.live_pods()[0])
    world.reconcile()


def deletes(world: World) -> bool:
    """Reconcile, and return whether a Job is deleted."""
    return any(isinstance(action, DeleteJob) for action in world.reconcile().actions)


# Stages that fall silent


def test_a_stage_without_progress_is_stopped_and_restarted() -> None:
    """Deleting the Job lets the pod save a checkpoint. Status, metric and event have the reason."""
    world = a_reporting_world(stallTimeout="10m")
    (job,) = world.live_jobs()
    world.seconds += 599
    assert not deletes(world)
    world.seconds += 1
    assert deletes(world)
    assert condition(world, "Reconciling").reason == Reason.NO_PROGRESS
    assert "reported no progress for 600 s, spec.stallTimeout is 10m" in condition(world, "Reconciling").message
    assert (entry(world, Stage.TRAIN).stalls, entry(world, Stage.TRAIN).cut_short) == (1, CutShort.NO_PROGRESS)
    assert "Warning NoProgress" in world.events
    world.settle()
    (again,) = world.live_jobs()
    assert again["metadata"]["name"] == job["metadata"]["name"]
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert entry(world, Stage.TRAIN).stalls == 1
    run_to_the_end(world)
    assert entry(world, Stage.TRAIN).attempts == 2


def test_an_object_is_requeued_for_its_stall_timeout() -> None:
    """No watch reports missing progress."""
    world = a_reporting_world(stallTimeout="10m")
    world.seconds += 100
    wait = world.reconcile().requeue_after
    assert wait is not None
    assert wait.total_seconds() == 500


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_repeated_stalls_end_the_run_until_a_request(how: str) -> None:
    """retry.limit is the bound; a request resets the count."""
    world = a_reporting_world(stallTimeout="10m", retry={"limit": 1})
    for _ in range(2):
        world.seconds += 600
        world.settle()
        for pod in world.live_pods():
            world.start(pod)
            world.seconds += 1
            report_progress(world)
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.reason == Reason.NO_PROGRESS
    assert "2 pods have been stopped" in world.status.failure.message
    assert entry(world, Stage.TRAIN).state is StageState.FAILED
    world.seconds += 100_000
    world.settle()
    assert world.status.failure.reason == Reason.NO_PROGRESS
    assert not world.live_jobs()
    if how == "edit":
        world.edit(stallTimeout="1h")
    else:
        world.request("now")
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.failure is None
    assert entry(world, Stage.TRAIN).stalls == 0
    run_to_the_end(world)


def test_a_stage_that_never_reported_is_not_stopped() -> None:
    """Its reports may be blocked, or the image may not send any."""
    world = a_world_at(Stage.TRAIN, stallTimeout="10m")
    world.seconds += 7 * 3600
    assert not deletes(world)


def test_progress_of_train_does_not_start_the_stall_timeout_of_evaluate() -> None:
    """The two share a pod; evaluate may load a model for a while before its first report."""
    world = a_reporting_world(stallTimeout="10m")
    (pod,) = world.live_pods()
    world.seconds += 60
    world.succeed(pod)
    world.start(pod)
    world.reconcile()
    world.seconds += 3000
    assert not deletes(world)
    world.report_progress(pod)
    world.reconcile()
    world.seconds += 600
    assert deletes(world)
    assert (entry(world, Stage.TRAIN).stalls, entry(world, Stage.EVALUATE).stalls) == (0, 1)


def test_downtime_of_the_operator_does_not_count_as_a_stall() -> None:
    """After an outage the stage has the whole timeout to report."""
    world = a_reporting_world(stallTimeout="10m")
    world.seconds += 3600
    world.restart_operator()
    assert not deletes(world)
    world.seconds += 599
    assert not deletes(world)
    world.seconds += 1
    assert deletes(world)


def test_without_a_progress_endpoint_no_stage_is_stopped() -> None:
    """No reports can arrive."""
    world = a_reporting_world(stallTimeout="10m")
    world.platform = type(world.platform)(image=world.platform.image)
    world.seconds += 3600
    assert not deletes(world)


def test_a_stall_timeout_of_0s_disables_the_limit() -> None:
    """The Job is kept after hours without progress."""
    world = a_reporting_world(stallTimeout="0s")
    world.seconds += 7 * 3600
    assert not deletes(world)


# GPU hours


def test_gpu_hours_are_counted_over_all_pods_and_operators() -> None:
    """Running time times GPUs, of train and evaluate. Waiting is not counted."""
    world = a_world_at(Stage.TRAIN, compute={"gpus": 2})
    running = int((world.now - entry(world, Stage.TRAIN).started_at).total_seconds())
    world.seconds += 600 - running
    world.drain(world.live_pods()[0])
    world.settle()
    assert world.status.run.gpu_seconds == 1200
    world.seconds += 5000
    world.restart_operator()
    (pod,) = world.live_pods()
    world.start(pod)
    world.seconds += 100
    world.succeed(pod)
    world.start(pod)
    world.seconds += 50
    world.succeed(pod)
    world.settle()
    assert world.status.run.gpu_seconds == 1500
    run_to_the_end(world)
    assert world.status.run.gpu_seconds == 1500


def test_a_run_on_the_cpu_uses_no_gpu_hours() -> None:
    """Neither do prepare and publish."""
    world = a_world_at(Stage.TRAIN, compute={"gpus": 0}, maxGpuHours="0.001")
    world.seconds += 3600
    run_to_the_end(world)
    assert world.status.run.gpu_seconds == 0


def test_gpu_time_of_running_pods_is_written_once_a_minute() -> None:
    """Otherwise every reconcile of a training object would write its status."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    world.seconds += 120 - world.seconds % 60
    world.reconcile()
    writes = world.status_writes
    for _ in range(10):
        world.seconds += 1
        world.reconcile()
    assert world.status_writes <= writes + 1
    assert world.status.run.gpu_seconds % 60 == 0


def test_exhausted_gpu_hours_stop_the_run_until_the_limit_is_raised() -> None:
    """It saves a checkpoint and resumes from it."""
    world = a_world_at(Stage.TRAIN, maxGpuHours="0.5", compute={"gpus": 2})
    used = entry(world, Stage.TRAIN)
    assert used.gpus == 2
    decided = world.reconcile()
    assert decided.requeue_after is not None
    assert decided.requeue_after.total_seconds() == pytest.approx(900, abs=15)
    world.seconds += 900
    assert deletes(world)
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.reason == Reason.GPU_HOURS_SPENT
    assert "GPU hours, spec.maxGpuHours is 0.5" in world.status.failure.message
    world.settle()
    assert not world.live_jobs()
    world.seconds += 100_000
    world.settle()
    assert not world.live_jobs()
    world.edit(maxGpuHours="2")
    run_to_the_end(world)
    assert entry(world, Stage.TRAIN).attempts == 2


def test_stages_without_gpus_run_after_the_gpu_hours_are_exhausted() -> None:
    """An evaluated model is published."""
    world = a_world_at(Stage.EVALUATE, maxGpuHours="0.5")
    (pod,) = world.live_pods()
    world.seconds += 7200
    world.succeed(pod)
    run_to_the_end(world)


# Pods that are stopped from outside


def test_preemptions_are_counted_and_reported() -> None:
    """In the status, which outlives the pods, and as events. They cost no retry."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    for count in (1, 2):
        world.drain(world.live_pods()[0])
        world.settle()
        assert world.status.run.preemptions == count
        assert entry(world, Stage.TRAIN).cut_short is CutShort.PREEMPTED
        world.seconds += 10
        world.start(world.live_pods()[0])
        world.reconcile()
        assert entry(world, Stage.TRAIN).cut_short is None
    assert world.events.count("Warning Preempted") == 2
    world.edit(suspend=True)
    world.settle()
    world.edit(suspend=False)
    run_to_the_end(world)
    assert world.status.run.preemptions == 2


def test_a_pod_stopped_by_the_operator_is_no_preemption() -> None:
    """Neither a suspension nor a replacement is counted."""
    world = a_world_at(Stage.TRAIN)
    world.edit(suspend=True)
    world.settle()
    world.edit(suspend=False, podTemplates={"train": {"nodeSelector": {"gpu": "big"}}})
    world.settle()
    world.seconds += 10
    world.start(world.live_pods()[0])
    world.edit(podTemplates={"train": {"nodeSelector": {"gpu": "bigger"}}})
    run_to_the_end(world)
    assert world.status.run.preemptions == 0


def test_a_stage_that_succeeded_before_a_drain_was_not_preempted() -> None:
    """Train is done; only evaluate was interrupted."""
    world = a_world_at(Stage.EVALUATE)
    world.drain(world.live_pods()[0])
    world.settle()
    assert (entry(world, Stage.TRAIN).preemptions, entry(world, Stage.EVALUATE).preemptions) == (0, 1)


# Pods that need too much memory


def run_spec(world: World) -> RunSpec:
    """Return the RunSpec of the running pod."""
    (pod,) = world.live_pods()
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])


def test_an_oom_killed_pod_is_retried_with_smaller_batches() -> None:
    """The Job is replaced, as all pods of a Job are equal."""
    world = a_world_at(Stage.TRAIN)
    assert run_spec(world).memory_kills == 0
    for kills in (1, 2):
        (pod,) = world.live_pods()
        world.kill_for_memory(pod)
        world.reconcile()
        assert condition(world, "Reconciling").reason == "Replacing"
        assert "exceeded its memory limit" in condition(world, "Reconciling").message
        world.settle()
        assert run_spec(world).memory_kills == kills
        assert entry(world, Stage.TRAIN).memory_kills == kills
        world.seconds += 10
        world.start(world.live_pods()[0])
        world.reconcile()
    assert world.events.count("Warning OutOfMemory") == 2
    run_to_the_end(world)


@pytest.mark.parametrize("how", ["edit", "annotation"])
@pytest.mark.parametrize("limit", [0, 1])
def test_repeated_oom_kills_end_the_run(limit: int, how: str) -> None:
    """The failure stays when the Job is deleted. A request starts again with full micro-batches."""
    world = a_world_at(Stage.TRAIN, retry={"limit": limit})
    for _ in range(limit + 1):
        world.kill_for_memory(world.live_pods()[0])
        world.settle()
        for pod in world.live_pods():
            world.seconds += 10
            world.start(pod)
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.reason == Reason.OUT_OF_MEMORY
    world.seconds += 3600
    world.settle()
    assert world.status.failure.reason == Reason.OUT_OF_MEMORY
    assert not world.live_jobs()
    if how == "edit":
        world.edit(podTemplates={"train": {"resources": {"limits": {"memory": "64Gi"}}}})
    else:
        world.request("now")
        world.settle()
        world.run_pod()
    world.settle()
    assert run_spec(world).memory_kills == 0
    run_to_the_end(world)


def test_an_oom_killed_prepare_is_retried_unchanged() -> None:
    """It has no micro-batches; the limit of the Job applies."""
    world = a_world_at(Stage.PREPARE)
    (job,) = world.live_jobs()
    world.kill_for_memory(world.live_pods()[0])
    world.settle()
    assert [item["metadata"]["uid"] for item in world.live_jobs()] == [job["metadata"]["uid"]]
    assert condition(world, "Reconciling").reason == "Preparing"
    assert "OutOfMemory" in condition(world, "Reconciling").message


@pytest.mark.parametrize(("bound", "reported"), [({"maxRuntime": "1h"}, True), ({"stallTimeout": "10m"}, False)])
def test_an_invalid_schedule_does_not_disable_the_limits(bound: dict[str, str], reported: bool) -> None:
    """A running pod continues when such a schedule is set, and its limits still apply."""
    world = a_reporting_world(**bound)
    world.edit(retrain={"schedule": "61 * * * *"})
    world.reconcile()
    assert condition(world, "Stalled").reason == "InvalidSpec"
    for _ in range(4):
        wait = world.plan().requeue_after
        assert world.live_jobs()
        assert wait is not None
        world.seconds += int(wait.total_seconds())
        if reported:
            report_progress(world)
        world.settle()
        if not world.live_jobs():
            return
    raise AssertionError("the run does not end")

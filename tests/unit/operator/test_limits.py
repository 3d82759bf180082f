"""What bounds a run, and what is counted of the pods that were cut short."""

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


def a_heard_world(**parts: Any) -> World:
    """Return a world in which train runs and has just reported progress that was written."""
    world = a_world_at(Stage.TRAIN, **parts)
    world.seconds += 1
    hear(world)
    return world


def hear(world: World) -> None:
    """Let the live pod report, and the operator write it."""
    world.hear(world.live_pods()[0])
    world.reconcile()


def deletes(world: World) -> bool:
    """Let the operator decide, and tell whether it deletes a Job."""
    return any(isinstance(action, DeleteJob) for action in world.reconcile().actions)


# Stages that fall silent


def test_a_stage_that_falls_silent_is_stopped_and_started_again() -> None:
    """Deleting the Job lets the pod save a checkpoint; the reason is in the status, counted and an event."""
    world = a_heard_world(stallTimeout="10m")
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


def test_the_operator_looks_again_when_the_silence_gets_too_long() -> None:
    """No watch tells of silence."""
    world = a_heard_world(stallTimeout="10m")
    world.seconds += 100
    wait = world.reconcile().requeue_after
    assert wait is not None
    assert wait.total_seconds() == 500


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_a_stage_that_falls_silent_again_and_again_ends_the_run_until_asked(how: str) -> None:
    """retry.limit bounds it; asking begins the count anew."""
    world = a_heard_world(stallTimeout="10m", retry={"limit": 1})
    for _ in range(2):
        world.seconds += 600
        world.settle()
        for pod in world.live_pods():
            world.start(pod)
            world.seconds += 1
            hear(world)
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


def test_a_stage_that_was_never_heard_is_not_judged_by_its_silence() -> None:
    """Its reports may not get through, or the image may not be ours: hours of work are not thrown away for that."""
    world = a_world_at(Stage.TRAIN, stallTimeout="10m")
    world.seconds += 7 * 3600
    assert not deletes(world)


def test_reports_of_train_say_nothing_about_evaluate() -> None:
    """The two share a pod; evaluate may load a model for a while before its first report."""
    world = a_heard_world(stallTimeout="10m")
    (pod,) = world.live_pods()
    world.seconds += 60
    world.succeed(pod)
    world.start(pod)
    world.reconcile()
    world.seconds += 3000
    assert not deletes(world)
    world.hear(pod)
    world.reconcile()
    world.seconds += 600
    assert deletes(world)
    assert (entry(world, Stage.TRAIN).stalls, entry(world, Stage.EVALUATE).stalls) == (0, 1)


def test_time_in_which_nobody_listened_is_no_silence() -> None:
    """An operator that was away for an hour gives the stage its whole time to be heard."""
    world = a_heard_world(stallTimeout="10m")
    world.seconds += 3600
    world.restart_operator()
    assert not deletes(world)
    world.seconds += 599
    assert not deletes(world)
    world.seconds += 1
    assert deletes(world)


def test_without_an_endpoint_for_progress_nobody_is_silent() -> None:
    """Nothing can be heard."""
    world = a_heard_world(stallTimeout="10m")
    world.platform = type(world.platform)(image=world.platform.image)
    world.seconds += 3600
    assert not deletes(world)


def test_a_stall_timeout_of_0s_stops_nothing() -> None:
    """For those who know better."""
    world = a_heard_world(stallTimeout="0s")
    world.seconds += 7 * 3600
    assert not deletes(world)


# GPU hours


def test_gpu_hours_are_counted_over_all_pods_and_operators() -> None:
    """Running time times GPUs, of train and evaluate; what waits costs nothing."""
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
    """Nor does preparing or publishing."""
    world = a_world_at(Stage.TRAIN, compute={"gpus": 0}, maxGpuHours="0.001")
    world.seconds += 3600
    run_to_the_end(world)
    assert world.status.run.gpu_seconds == 0


def test_the_gpu_time_of_what_runs_is_written_once_a_minute() -> None:
    """Every look at an object that trains would be a write otherwise."""
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


def test_spent_gpu_hours_stop_the_run_until_there_are_more() -> None:
    """With a checkpoint, from which it goes on."""
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


def test_what_needs_no_gpu_goes_on_when_the_hours_are_spent() -> None:
    """What was trained and judged is published."""
    world = a_world_at(Stage.EVALUATE, maxGpuHours="0.5")
    (pod,) = world.live_pods()
    world.seconds += 7200
    world.succeed(pod)
    run_to_the_end(world)


# Pods that are stopped from outside


def test_preemptions_are_counted_and_told() -> None:
    """In the status, which survives the pods, and as events; they cost no retry."""
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


def test_what_the_operator_stops_itself_is_no_preemption() -> None:
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


def test_a_stage_that_ended_well_before_its_pod_was_drained_was_not_preempted() -> None:
    """Train is done; only evaluate was stopped."""
    world = a_world_at(Stage.EVALUATE)
    world.drain(world.live_pods()[0])
    world.settle()
    assert (entry(world, Stage.TRAIN).preemptions, entry(world, Stage.EVALUATE).preemptions) == (0, 1)


# Pods that need too much memory


def run_spec(world: World) -> RunSpec:
    """Return the RunSpec of the running pod."""
    (pod,) = world.live_pods()
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])


def test_a_pod_that_was_killed_for_memory_is_followed_by_one_that_computes_less_at_once() -> None:
    """The Job is replaced, as a Job's pods are all alike."""
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
def test_pods_that_are_killed_for_memory_end_the_run_after_the_limit(limit: int, how: str) -> None:
    """The failure stays although the Job is gone; when somebody asks, it begins with whole micro-batches again."""
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


def test_prepare_that_needs_too_much_memory_is_retried_as_it_is() -> None:
    """It has no micro-batches; the Job's own limit bounds it."""
    world = a_world_at(Stage.PREPARE)
    (job,) = world.live_jobs()
    world.kill_for_memory(world.live_pods()[0])
    world.settle()
    assert [item["metadata"]["uid"] for item in world.live_jobs()] == [job["metadata"]["uid"]]
    assert condition(world, "Reconciling").reason == "Preparing"
    assert "OutOfMemory" in condition(world, "Reconciling").message


@pytest.mark.parametrize(("bound", "heard"), [({"maxRuntime": "1h"}, True), ({"stallTimeout": "10m"}, False)])
def test_a_schedule_that_says_nothing_is_no_way_around_the_limits(bound: dict[str, str], heard: bool) -> None:
    """What runs goes on when such a schedule is set, and still ends when its time is over."""
    world = a_heard_world(**bound)
    world.edit(retrain={"schedule": "61 * * * *"})
    world.reconcile()
    assert condition(world, "Stalled").reason == "InvalidSpec"
    for _ in range(4):
        wait = world.plan().requeue_after
        assert world.live_jobs()
        assert wait is not None
        world.seconds += int(wait.total_seconds())
        if heard:
            hear(world)
        world.settle()
        if not world.live_jobs():
            return
    raise AssertionError("it goes on and on")

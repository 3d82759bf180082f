"""Runs on several nodes: their pods start, end and restart together, and each restart has a cause."""

import pytest
from property.simulator import World, current_stage
from property.worlds import condition, entry, run_to_the_end
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, Phase, StageState

GROUP = {"compute": {"nodes": 3, "gpus": 2}}


def a_group(**parts):
    """Return a world in which the pods of a group wait for their start."""
    world = World(**{**GROUP, **parts})
    world.settle()
    world.run_pod()
    world.settle()
    assert len(world.live_pods()) == 3
    return world


def a_training_group(**parts):
    """Return a world in which all pods of a group train."""
    world = a_group(**parts)
    start_all(world)
    world.settle()
    assert entry(world, Stage.TRAIN).state is StageState.RUNNING
    return world


def start_all(world, seconds=1):
    """Start the live pods one after the other."""
    for pod in world.live_pods():
        world.seconds += seconds
        world.start(pod)


def restart(world):
    """Let the rest of the group end, and start the next one."""
    world.settle()
    for pod in world.live_pods():
        world.notice(pod)
    world.seconds += 10
    world.settle()
    start_all(world)
    world.settle()


def test_a_stage_has_started_when_all_pods_run():
    """Until then the run is Queued, and its message has the number of running pods."""
    world = a_group()
    first, second, third = world.live_pods()
    for pod in (first, second):
        world.seconds += 5
        world.start(pod)
        world.settle()
        assert (world.status.phase, entry(world, Stage.TRAIN).attempts) == (Phase.QUEUED, 0)
    assert "on 3 nodes: 2 of 3 pods run" in condition(world, "Ready").message
    world.seconds += 5
    world.start(third)
    world.settle()
    train = entry(world, Stage.TRAIN)
    assert (world.status.phase, train.attempts, train.nodes, train.gpus) == (Phase.TRAINING, 1, 3, 6)
    assert train.started_at == world.now


def test_gpu_time_counts_the_gpus_of_all_pods():
    """From the start of the last pod."""
    world = a_training_group()
    world.seconds += 600
    world.settle()
    assert world.status.run.gpu_seconds == 6 * 600


def test_a_run_on_several_nodes_succeeds():
    """With one Job for train and evaluate, and one start of the group."""
    world = World(**GROUP)
    run_to_the_end(world)
    assert [entry(world, stage).attempts for stage in Stage] == [1, 1, 1, 1]
    assert entry(world, Stage.TRAIN).restarts == {}


def test_train_is_done_when_the_first_pod_has_reported_it():
    """All pods continue with evaluate."""
    world = a_training_group()
    first, *others = world.live_pods()
    world.seconds += 60
    world.succeed(first)
    world.settle()
    assert (world.status.phase, entry(world, Stage.TRAIN).state) == (Phase.EVALUATING, StageState.SUCCEEDED)
    for pod in others:
        world.succeed(pod)
        assert current_stage(pod) is Stage.EVALUATE
    world.settle()
    assert (entry(world, Stage.EVALUATE).state, entry(world, Stage.EVALUATE).gpus) == (StageState.RUNNING, 6)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    ("happens", "cause", "preemptions"),
    [
        (lambda world, pod: world.drain(pod), "Preempted", 1),
        (lambda world, pod: world.end(pod, 75), "Preempted", 1),
        (lambda world, pod: world.lose(pod), "Preempted", 1),
        (lambda world, pod: world.end(pod, 137), "PodLost", 0),
        (lambda world, pod: world.evict(pod, "no memory"), "Evicted", 0),
        (lambda world, pod: world.kill_for_memory(pod), "OutOfMemory", 0),
        (lambda world, pod: world.fail(pod, Reason.S3_UNREACHABLE), "S3Unreachable", 0),
    ],
)
def test_a_lost_pod_is_one_restart_of_the_group(happens, cause, preemptions, index):
    """Whichever pod it is and whatever the cause: the exits of the others are not counted."""
    world = a_training_group()
    happens(world, world.live_pods()[index])
    restart(world)
    train = entry(world, Stage.TRAIN)
    assert (train.attempts, train.restarts, train.preemptions) == (2, {cause: 1}, preemptions)
    assert (train.peer_losses, train.state) == (0, StageState.RUNNING)
    run_to_the_end(world)


def test_two_preempted_pods_are_one_restart():
    """As when two nodes are drained at once."""
    world = a_training_group()
    for pod in world.live_pods()[:2]:
        world.drain(pod)
    restart(world)
    assert entry(world, Stage.TRAIN).restarts == {"Preempted": 1}
    assert world.status.run.preemptions == 1


def test_a_group_that_lost_a_pod_still_holds_its_gpus():
    """The attempt ends when all its pods have ended."""
    world = a_training_group()
    started_at = entry(world, Stage.TRAIN).started_at
    world.drain(world.live_pods()[1])
    world.seconds += 30
    world.settle()
    assert (entry(world, Stage.TRAIN).state, entry(world, Stage.TRAIN).cut_short) == (StageState.RUNNING, None)
    for pod in world.live_pods():
        world.notice(pod)
    world.settle()
    train = entry(world, Stage.TRAIN)
    assert (train.state, train.cut_short, train.finished_at) == (StageState.PENDING, CutShort.PREEMPTED, world.now)
    assert (train.finished_at - started_at).seconds == 30


def test_a_failure_of_any_pod_fails_the_run():
    """The lowest index with its own reason is reported. A permanent failure ends the run."""
    world = a_training_group()
    first, second, third = world.live_pods()
    world.fail(third, Reason.CUDA_OUT_OF_MEMORY, "of the third")
    world.fail(second, Reason.CUDA_OUT_OF_MEMORY, "of the second")
    world.notice(first)
    world.settle()
    failure = world.status.failure
    assert (world.status.phase, failure.reason, failure.message) == (
        Phase.FAILED,
        Reason.CUDA_OUT_OF_MEMORY,
        "of the second",
    )
    assert failure.final
    assert entry(world, Stage.TRAIN).restarts == {}
    assert not world.live_pods()


def test_a_permanent_failure_before_the_group_has_started_fails_the_run():
    """The other pods may not have started."""
    world = a_group()
    pod = world.live_pods()[2]
    world.start(pod)
    world.fail(pod, Reason.CUDA_OUT_OF_MEMORY, "too small")
    world.settle()
    assert (world.status.failure.reason, world.status.failure.message) == (Reason.CUDA_OUT_OF_MEMORY, "too small")


def test_a_pod_failure_after_train_does_not_rerun_train():
    """The first pod has written the output. Evaluate is retried with the reason of the failure."""
    world = a_training_group(retry={"limit": 0})
    first, second, third = world.live_pods()
    world.hears_ends = False
    world.succeed(first)
    world.fail(second, Reason.S3_UNREACHABLE, "of the second")
    for pod in (first, third):
        world.notice(pod)
    world.settle()
    assert entry(world, Stage.TRAIN).state is StageState.SUCCEEDED
    failure = world.status.failure
    assert (failure.stage, failure.reason, failure.message) == ("evaluate", Reason.S3_UNREACHABLE, "of the second")


def test_a_pod_that_ends_before_the_group_has_started_does_not_count():
    """Only this pod is replaced."""
    world = a_group()
    first, second, _ = world.live_pods()
    for pod in (first, second):
        world.start(pod)
    world.settle()
    world.drain(first)
    world.settle()
    train = entry(world, Stage.TRAIN)
    assert (train.attempts, train.preemptions, train.restarts, train.state) == (0, 0, {}, StageState.PENDING)
    start_all(world)
    world.settle()
    assert entry(world, Stage.TRAIN).attempts == 1


def test_retryable_failures_are_limited_per_index():
    """By the same limit as for a single pod."""
    world = a_training_group(retry={"limit": 2})
    for attempt in (1, 2, 3):
        assert entry(world, Stage.TRAIN).attempts == attempt
        for pod in world.live_pods():
            world.fail(pod, Reason.S3_UNREACHABLE)
        restart(world)
    assert (world.status.phase, world.status.failure.reason) == (Phase.FAILED, Reason.S3_UNREACHABLE)


def test_repeated_connection_losses_end_the_run():
    """For example with a NetworkPolicy between the pods. It is not a preemption, so it is limited."""
    world = a_training_group(retry={"limit": 1})
    for _ in range(2):
        for pod in world.live_pods():
            world.fail(pod, Reason.PEER_LOST, "timed out")
        restart(world)
    failure = world.status.failure
    assert (failure.reason, failure.final) == (Reason.PEER_LOST, True)
    assert "2 times" in failure.message
    assert "NetworkPolicies" in failure.remedy
    world.settle()
    assert not world.live_jobs()


def test_a_partially_scheduled_group_is_removed():
    """Its pods hold GPUs for startTimeout at most. The status gives the reason, and retries back off."""
    world = a_group(compute={"nodes": 3, "startTimeout": "5m"})
    for times, pause in ((1, 60), (2, 120), (3, 240)):
        first, second, _ = world.live_pods()
        for pod in (first, second):
            world.start(pod)
        world.seconds += 299
        world.settle()
        assert len(world.live_pods()) == 3
        assert world.plan().requeue_after.total_seconds() == 1
        world.seconds += 1
        world.settle()
        assert (world.live_pods(), world.live_jobs()) == ([], [])
        train = entry(world, Stage.TRAIN)
        assert (train.start_timeouts, (train.next_start - world.now).seconds) == (times, pause)
        assert (world.status.phase, condition(world, "Ready").reason) == (Phase.QUEUED, "Unschedulable")
        message = condition(world, "Ready").message
        assert "startTimeout (5m) and were removed, so that they hold no GPUs; " in message
        assert (f"this happened {times} times in a row" in message) == (times > 1)
        assert condition(world, "Stalled").status == "False"
        world.seconds += pause
        world.settle()
        assert len(world.live_pods()) == 3
    start_all(world)
    world.settle()
    train = entry(world, Stage.TRAIN)
    assert (train.attempts, train.start_timeouts, train.next_start) == (1, 0, None)
    run_to_the_end(world)


def test_an_unscheduled_group_can_wait_forever():
    """No pod has a node, so none holds a GPU."""
    world = World(**GROUP)
    world.settle()
    world.run_pod()
    world.nodes = []
    world.settle()
    world.seconds += 10**6
    world.settle()
    assert len(world.live_pods()) == 3
    assert condition(world, "Ready").reason == "Unschedulable"


def test_a_queued_group_has_no_start_timeout():
    """Kueue has reserved the quota for all pods."""
    world = World(**GROUP, queue={"name": "team-a"})
    world.settle()
    world.run_pod()
    world.settle()
    world.admit()
    world.settle()
    world.start(world.live_pods()[0])
    world.seconds += 10**5
    world.settle()
    assert len(world.live_pods()) == 3


def test_a_preempted_group_counts_as_one_preemption():
    """Kueue preempts and admits all pods together."""
    world = World(**GROUP, queue={"name": "team-a"}, retry={"limit": 0})
    world.settle()
    world.run_pod()
    world.settle()
    world.admit()
    world.settle()
    start_all(world)
    world.settle()
    world.preempt()
    world.seconds += 5
    world.settle()
    assert not world.live_pods()
    assert entry(world, Stage.TRAIN).restarts == {"Preempted": 1}
    assert world.status.run.preemptions == 1
    world.admit()
    run_to_the_end(world)


def test_a_group_without_progress_is_stopped_and_retried():
    """Only the first pod reports progress."""
    world = a_training_group(stallTimeout="10m", retry={"limit": 1})
    world.report_progress(world.live_pods()[0])
    world.seconds += 600
    world.settle()
    train = entry(world, Stage.TRAIN)
    assert (train.stalls, train.restarts) == (1, {"NoProgress": 1})
    run_to_the_end(world)


def test_a_group_with_a_completed_index_is_restarted_as_a_whole():
    """The Job controller does not restart a succeeded index, so the others would wait for it."""
    world = a_training_group()
    first, second, third = world.live_pods()
    world.end(second, 0, "")
    world.end(second, 0, "")
    world.fail(first, Reason.S3_UNREACHABLE)
    world.notice(third)
    world.settle()
    assert entry(world, Stage.TRAIN).retries == 1
    assert len(world.live_pods()) == 3
    run_to_the_end(world)


def test_a_new_group_waits_for_every_pod_of_the_old_one():
    """An edit replaces the Job; a pod on an unreachable node may still write its checkpoint."""
    world = a_training_group()
    pod = world.live_pods()[2]
    world.cut_off(pod)
    world.edit(training={"learningRate": "3e-4"})
    for _ in range(5):
        world.reconcile()
    assert len(world.live_jobs()) == 1
    world.seconds += 300
    world.reconcile()
    assert world.status.failure.reason == Reason.NODE_LOST
    for each in list(world.live_pods()):
        if each is not pod:
            world.notice(each)
    world.lose(pod)
    run_to_the_end(world)


def test_a_changed_node_count_replaces_the_job_but_not_finished_outputs():
    """Outputs do not depend on the number of nodes."""
    world = a_training_group()
    key = entry(world, Stage.TRAIN).key
    world.edit(compute={"nodes": 1})
    world.seconds += 5
    world.settle()
    (pod,) = world.live_pods()
    world.start(pod)
    world.settle()
    assert (entry(world, Stage.TRAIN).nodes, entry(world, Stage.TRAIN).key) == (0, key)
    assert entry(world, Stage.PREPARE).attempts == 1
    run_to_the_end(world)


def test_a_name_with_dots_is_rejected_with_several_nodes():
    """A profile may set nodes, so the API server does not reject the object."""
    world = World(**GROUP)
    world.finetune_body["metadata"]["name"] = "support.tools"
    world.settle()
    world.run_pod()
    world.settle()
    assert (world.status.failure.reason, world.status.failure.stage) == (Reason.INVALID_SPEC, "train")
    assert "metadata.name support.tools must have no dots" in world.status.failure.message


def test_service_and_network_policy_are_deleted_with_their_job():
    """No leftovers exist when another Job follows."""
    world = a_training_group()
    (job,) = world.live_jobs()
    name = job["metadata"]["name"]
    assert set(world.companions) == {f"Service/{name}", f"NetworkPolicy/{name}"}
    world.edit(training={"learningRate": "3e-4"})
    world.seconds += 5
    world.settle()
    (job,) = world.live_jobs()
    assert job["metadata"]["name"] != name
    assert {key.partition("/")[2] for key in world.companions} == {job["metadata"]["name"]}

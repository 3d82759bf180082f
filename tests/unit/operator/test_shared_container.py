"""Train and evaluate are processes of one container: what the operator derives about each."""

import json
from datetime import datetime, timedelta

import pytest
from property.builders import a_failure_report, at, text
from property.simulator import World
from property.worlds import a_world_at, condition, entry
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import CutShort, Phase, StageState
from tunemill_dev.played import a_report
from tunemill_operator.engine import failures
from tunemill_operator.engine.attempts import report_of
from tunemill_operator.engine.objects import Pod, pod_of


def a_pod(message: str, code: int = 0, reason: str = "") -> Pod:
    """Return a train pod whose only container ran for a minute and left a message."""
    ended = {"startedAt": text(at(0)), "finishedAt": text(at(60)), "exitCode": code, "message": message}
    metadata = {"name": "a", "uid": "u", "resourceVersion": "1", "creationTimestamp": text(at(0))}
    container = {"name": "train", "state": {"terminated": {**ended, "reason": reason}}}
    phase = "Failed" if code else "Succeeded"
    return pod_of({"metadata": metadata, "status": {"phase": phase, "containerStatuses": [container]}})


def trained_at(seconds: float) -> str:
    """Return a report of train that finished this many seconds after the container started."""
    return a_report(Stage.TRAIN, finished_at=at(seconds))


def pending_for(world: World, seconds: int) -> None:
    """Let time pass and reconcile."""
    world.seconds += seconds
    world.reconcile()


# What a termination message says


def test_two_reports_in_a_message_are_two_stages() -> None:
    """Evaluate started when train finished, and ended with the container."""
    train, evaluate = a_pod(f"{trained_at(40)}\n{a_report(Stage.EVALUATE, finished_at=at(60))}").containers
    assert (train.name, train.started_at, train.ended and train.ended.finished_at) == ("train", at(0), at(40))
    assert (evaluate.name, evaluate.started_at) == ("evaluate", at(40))
    assert evaluate.ended
    assert evaluate.ended.finished_at == at(60)
    assert [report_of(item) is not None for item in (train, evaluate)] == [True, True]


def test_the_exit_code_of_the_container_is_that_of_the_last_stage() -> None:
    """Train succeeded with exit code 0, whatever the result of evaluate."""
    pod = a_pod(f"{trained_at(40)}\n{a_failure_report(Stage.EVALUATE, Reason.S3_UNREACHABLE)}", 69)
    cause = failures.of_pod(pod)
    assert cause
    assert (cause.stage, cause.reason, cause.exit_code) == ("evaluate", Reason.S3_UNREACHABLE, 69)


def test_a_kill_during_evaluate_is_not_a_failure_of_train() -> None:
    """The report of train is in the message while evaluate runs, and survives a kill of the container."""
    cause = failures.of_pod(a_pod(trained_at(40), 137, "OOMKilled"))
    assert cause
    assert (cause.stage, cause.reason) == ("evaluate", Reason.OUT_OF_MEMORY)
    cause = failures.of_pod(a_pod("", 137, "OOMKilled"))
    assert cause
    assert (cause.stage, cause.reason) == ("train", Reason.OUT_OF_MEMORY)


def test_other_text_in_a_message_belongs_to_the_last_stage() -> None:
    """A sentence below the report of train belongs to evaluate."""
    cause = failures.of_pod(a_pod(f"{trained_at(40)}\nout of coffee", 1))
    assert cause
    assert cause.stage == "evaluate"
    assert cause.message.endswith("out of coffee")


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_an_impossible_time_is_clamped_to_the_containers(seconds: int) -> None:
    """A custom image may write the message, and the running time is computed from it."""
    train, evaluate = a_pod(f"{trained_at(seconds)}\n{a_report(Stage.EVALUATE)}").containers
    assert train.ended
    assert train.ended.finished_at
    assert at(0) <= train.ended.finished_at <= at(60)
    assert evaluate.started_at == train.ended.finished_at


def test_a_time_without_a_zone_is_utc() -> None:
    """A custom trainer may write one: it must not prevent the operator from reading the pod."""
    report = json.loads(trained_at(40)) | {"finishedAt": "2026-11-21T12:00:40"}
    train, _ = a_pod(f"{json.dumps(report)}\n{a_report(Stage.EVALUATE)}").containers
    assert train.ended
    assert train.ended.finished_at == at(40)


# What is known while the pod works


def test_train_is_recorded_while_evaluate_runs() -> None:
    """Facts, condition and one event follow the pod's report at once, and a restart does not repeat them."""
    world = a_world_at(Stage.TRAIN)
    (pod,) = world.live_pods()
    started_at = entry(world, Stage.TRAIN).started_at
    assert started_at
    world.seconds += 300
    world.succeed(pod)
    pending_for(world, 20)
    assert world.status.phase is Phase.EVALUATING
    assert condition(world, "Trained").status == "True"
    assert world.status.trained.steps == 12
    train, evaluate = entry(world, Stage.TRAIN), entry(world, Stage.EVALUATE)
    assert (train.state, evaluate.state) == (StageState.SUCCEEDED, StageState.RUNNING)
    assert train.finished_at == evaluate.started_at == world.now - timedelta(seconds=20)
    assert "evaluate is running" in condition(world, "Reconciling").message
    before = world.status
    world.restart_operator()
    pending_for(world, 1)
    assert world.status == before
    world.seconds += 59
    world.succeed(pod)
    world.settle()
    assert world.events.count("Normal Trained") == 1
    assert _seconds(world, Stage.EVALUATE) == 80
    assert world.status.run.gpu_seconds == sum(_seconds(world, stage) for stage in (Stage.TRAIN, Stage.EVALUATE))


def test_without_a_report_the_running_time_is_counted_for_train() -> None:
    """A report may be lost. The final message has both, and the total running time is the same."""
    recorded: list[tuple[int, int, int]] = []
    for hears in (True, False):
        world = a_world_at(Stage.TRAIN)
        world.hears_ends = hears
        (pod,) = world.live_pods()
        world.seconds += 300
        world.succeed(pod)
        pending_for(world, 60)
        assert (world.status.phase is Phase.EVALUATING) == hears
        assert entry(world, Stage.TRAIN).state is (StageState.SUCCEEDED if hears else StageState.RUNNING)
        world.succeed(pod)
        world.settle()
        assert [entry(world, stage).state for stage in (Stage.TRAIN, Stage.EVALUATE)] == [StageState.SUCCEEDED] * 2
        assert [entry(world, stage).attempts for stage in (Stage.TRAIN, Stage.EVALUATE)] == [1, 1]
        recorded.append((_seconds(world, Stage.TRAIN), _seconds(world, Stage.EVALUATE), world.status.run.gpu_seconds))
    assert recorded[0] == recorded[1]
    assert recorded[0][1] == 60


@pytest.mark.parametrize(
    "change",
    [
        {"key": "another-key"},
        {"stage": "evaluate"},
        {"trained": None, "failure": {"reason": "InternalError", "message": "", "remedy": ""}},
    ],
)
def test_only_a_report_with_the_expected_key_is_accepted(change: dict[str, object]) -> None:
    """A report of another training changes nothing."""
    world = a_world_at(Stage.TRAIN)
    (pod,) = world.live_pods()
    report = json.loads(a_report(Stage.TRAIN, key=entry(world, Stage.TRAIN).key, finished_at=world.now)) | change
    world._report_end(pod, json.dumps({name: value for name, value in report.items() if value is not None}))
    pending_for(world, 10)
    assert entry(world, Stage.TRAIN).state is StageState.RUNNING
    assert entry(world, Stage.EVALUATE).attempts == 0


def test_a_report_of_another_pod_is_ignored() -> None:
    """Only the pod of the stage can report its end."""
    world = a_world_at(Stage.TRAIN)
    world.hears_ends = True
    (pod,) = world.live_pods()
    report = a_report(Stage.TRAIN, key=entry(world, Stage.TRAIN).key, finished_at=world.now)
    world._report_end({**pod, "metadata": {**pod["metadata"], "uid": "other"}}, report)
    pending_for(world, 10)
    assert entry(world, Stage.TRAIN).state is StageState.RUNNING


@pytest.mark.parametrize("hears", [True, False])
def test_a_preemption_is_counted_for_the_running_stage(*, hears: bool) -> None:
    """Evaluate was stopped. Train is done and not counted again, and the next pod runs evaluate."""
    world = a_world_at(Stage.TRAIN)
    world.hears_ends = hears
    (pod,) = world.live_pods()
    world.seconds += 100
    world.succeed(pod)
    pending_for(world, 50)
    world.drain(pod)
    world.settle()
    train, evaluate = entry(world, Stage.TRAIN), entry(world, Stage.EVALUATE)
    assert (train.attempts, train.preemptions, train.state) == (1, 0, StageState.SUCCEEDED)
    assert (evaluate.attempts, evaluate.preemptions, evaluate.cut_short) == (1, 1, CutShort.PREEMPTED)
    (pod,) = world.live_pods()
    world.seconds += 5
    world.start(pod)
    pending_for(world, 1)
    world.succeed(pod, executed=False)  # train finds its output in the workspace
    pending_for(world, 30)
    assert entry(world, Stage.EVALUATE).state is StageState.RUNNING
    world.succeed(pod)
    world.settle()
    train, evaluate = entry(world, Stage.TRAIN), entry(world, Stage.EVALUATE)
    assert (train.attempts, evaluate.attempts, evaluate.preemptions) == (1, 2, 1)
    assert evaluate.earlier_seconds == 50
    assert _seconds(world, Stage.EVALUATE) == 31


def test_a_pod_stopped_during_train_never_started_evaluate() -> None:
    """Only train was interrupted, also after a later pod has trained."""
    world = a_world_at(Stage.TRAIN)
    world.drain(world.live_pods()[0])
    world.settle()
    world.run_pod()
    world.settle()
    assert (entry(world, Stage.TRAIN).attempts, entry(world, Stage.EVALUATE).attempts) == (2, 1)
    assert (entry(world, Stage.TRAIN).preemptions, entry(world, Stage.EVALUATE).preemptions) == (1, 0)


def test_progress_of_train_is_not_shown_for_evaluate() -> None:
    """Train's 100 % is not shown before evaluate has reported, nor after a restart of the operator."""
    world = a_world_at(Stage.TRAIN)
    (pod,) = world.live_pods()
    world.report_progress(pod, 100)
    world.reconcile()
    assert world.status.progress == "100%"
    world.succeed(pod)
    world.reconcile()
    assert (world.status.phase, world.status.progress) == (Phase.EVALUATING, "")
    world.restart_operator()
    pending_for(world, 5)
    assert world.status.progress == ""
    world.report_progress(pod, 3)
    world.reconcile()
    assert world.status.progress == "3%"
    world.restart_operator()
    pending_for(world, 5)
    assert world.status.progress == "3%"


@pytest.mark.parametrize("hears", [True, False])
def test_progress_of_evaluate_resets_the_stall_timeout(*, hears: bool) -> None:
    """Also where the report of train's end was lost."""
    world = a_world_at(Stage.TRAIN, stallTimeout="10m")
    world.hears_ends = hears
    (pod,) = world.live_pods()
    world.report_progress(pod)
    world.reconcile()
    world.succeed(pod)
    for _ in range(4):
        world.seconds += 300
        world.report_progress(pod)
        assert not world.reconcile().actions
    world.seconds += 600
    assert world.reconcile().actions, "and evaluate is stopped once it is silent itself"
    stalled = Stage.EVALUATE if hears else Stage.TRAIN
    assert entry(world, stalled).stalls == 1


def test_pods_of_an_older_operator_are_read_across_an_upgrade() -> None:
    """Train is an init container there: both kinds of pods lead to the same status."""
    recorded = []
    for old_pods in (False, True):
        world = a_world_at(Stage.PREPARE)
        world.old_pods = old_pods
        world.seconds += 10
        world.run_pod()
        world.settle()
        (pod,) = world.live_pods()
        names = [item["name"] for item in pod["status"]["initContainerStatuses"]]
        assert names == (["train"] if old_pods else [])
        world.start(pod)
        pending_for(world, 100)
        world.succeed(pod)
        world.start(pod)
        pending_for(world, 50)
        assert world.status.phase is Phase.EVALUATING
        world.drain(pod)
        world.settle()
        world.run_pod()
        world.settle()
        recorded.append([item.model_dump(exclude={"job"}) for item in world.status.stages])
        assert world.status.run.gpu_seconds == 150
    assert recorded[0] == recorded[1]


def _seconds(world: World, stage: Stage) -> int:
    found = entry(world, stage)
    assert isinstance(found.started_at, datetime)
    assert found.finished_at
    return int((found.finished_at - found.started_at).total_seconds())

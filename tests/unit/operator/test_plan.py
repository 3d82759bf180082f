"""Which actions and status the operator decides on, rule by rule."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from property.builders import a_finetune_body, at
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, condition, entry, labels
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState, SuiteDataFacts, TrainerStatus
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.engine.observe import Observed, Progress, Refusal, WarningEvent, recheck_interval
from tunemill_operator.engine.plan import CreateJob, DeleteJob, plan
from tunemill_operator.engine.volumes import Platform


def test_each_stage_follows_the_one_before() -> None:
    """Three Jobs in order, with their events."""
    world = a_finished_world()
    assert labels(world) == ["prepare", "train", "publish"]
    assert world.events == [
        f"Normal {what}" for what in ("Prepared", "Trained", "Evaluated", "GatePassed", "Published")
    ]


def test_a_new_object_gets_its_job_and_a_status_at_once() -> None:
    """Ready is Unknown in the first status, which is written with the first Job."""
    world = World()
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [CreateJob]
    assert condition(world, "Ready").status == "Unknown"
    assert condition(world, "Reconciling").status == "True"
    assert world.status.phase is Phase.PENDING
    assert world.status.run.started_at == world.now


@pytest.mark.parametrize(
    ("stage", "phase"),
    [
        (Stage.PREPARE, Phase.PREPARING),
        (Stage.TRAIN, Phase.TRAINING),
        (Stage.EVALUATE, Phase.EVALUATING),
        (Stage.PUBLISH, Phase.PUBLISHING),
    ],
)
def test_the_phase_is_that_of_the_running_stage(stage: Stage, phase: Phase) -> None:
    """Derived from the containers, not stored."""
    world = a_world_at(stage)
    world.reconcile()
    assert world.status.phase is phase
    assert condition(world, "Ready").status == "False"


def test_an_unchanged_object_causes_no_writes() -> None:
    """An hour of reconciles of a finished object needs no request. Transition times stay."""
    world = a_finished_world()
    writes, before = world.status_writes, world.status
    for _ in range(10):
        world.seconds += 360
        world.settle()
    assert world.status_writes == writes
    assert world.status == before


def test_transition_times_change_only_with_the_status_of_a_condition() -> None:
    """A new message is no transition."""
    world = a_world_at(Stage.PREPARE)
    world.reconcile()
    before = condition(world, "Ready")
    world.seconds += 100
    world.run_pod()
    world.settle()
    after = condition(world, "Ready")
    assert after.message != before.message
    assert after.last_transition_time == before.last_transition_time
    assert condition(world, "Prepared").last_transition_time == world.now


def test_a_deleted_object_is_left_to_the_garbage_collector() -> None:
    """No action, no status."""
    body = a_finetune_body()
    body["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    decided = plan(finetune_of(body), Observed(), Platform("image"), at(0))
    assert (decided.actions, decided.status) == ((), None)


def test_a_spec_of_a_newer_crd_is_reported_and_stops_nothing() -> None:
    """The meaning of a field unknown to this operator is not guessed."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    world.finetune_body["spec"]["adapter"] = {"method": "Future"}
    world.finetune_body["metadata"]["generation"] += 1
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.failure.reason == Reason.INVALID_SPEC
    assert "spec.adapter.method" in world.status.failure.message
    assert world.status.prepared is not None


# What edits change


@pytest.mark.parametrize(
    ("change", "jobs"),
    [
        ({"publish": {"tag": "v2"}}, ["publish"]),
        ({"evaluation": {"maxRows": 7}}, ["train", "publish"]),
        ({"adapter": {"lora": {"rank": 4}}}, ["train", "publish"]),
        ({"evaluation": {"gates": []}}, []),
        ({"podTemplates": {"train": {"resources": {"limits": {"memory": "9Gi"}}}}}, []),
        ({"compute": {"trainerImage": "registry.example.com/mine:2"}}, []),
        ({"retry": {"limit": 0}}, []),
        ({"training": {"checkpoint": {"everySteps": 5}}}, []),
        ({"dataset": {"credentialsSecretRef": {"name": "other"}}}, []),
    ],
)
def test_an_edit_reruns_only_the_affected_stages(change: dict[str, Any], jobs: list[str]) -> None:
    """The keys decide; a field that is in no key reruns nothing."""
    world = a_finished_world()
    before = len(world.created)
    world.edit(**change)
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    assert [name.split("-")[1] for name in world.created[before:]] == jobs
    assert world.status.phase is Phase.SUCCEEDED


def test_renamed_data_with_the_same_content_does_not_rerun_train() -> None:
    """Prepare reports the same key, so the training output is reused."""
    world = a_finished_world()
    world.edit(dataset={"uri": "s3://copy-of-the-bucket/calls.jsonl"})
    world.settle()
    assert world.status.phase is Phase.PREPARING
    world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish", "prepare"]


def test_adding_a_suite_reruns_prepare_and_evaluate_but_not_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of train stays, also after an upgrade with a new training recipe."""
    world = a_finished_world()
    before, evaluated = entry(world, Stage.TRAIN), entry(world, Stage.EVALUATE)
    monkeypatch.setattr(keys, "RECIPES", keys.RECIPES | {"train": keys.RECIPES["train"] + 1})
    world.edit(evaluation={"suites": [{"name": "chat", "uri": "s3://team-a/chat.jsonl", "judge": "Likelihood"}]})
    world.settle()
    assert world.status.phase is Phase.PREPARING
    for _ in range(3):
        world.run_pod(suites=[SuiteDataFacts(name="chat", key="0" * 16, rows=9)])
        world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish", "prepare", "train", "publish"]
    assert (entry(world, Stage.TRAIN).key, entry(world, Stage.TRAIN).inputs) == (before.key, before.inputs)
    assert entry(world, Stage.EVALUATE).key != evaluated.key
    assert [suite.name for suite in world.status.prepared.suites] == ["chat"]


def test_an_edit_while_training_replaces_the_job_without_overlap() -> None:
    """The old Job is deleted, and the new one is created when its pod has terminated."""
    world = a_world_at(Stage.TRAIN)
    (before,) = world.live_jobs()
    world.edit(training={"learningRate": "5e-4"})
    decided = world.reconcile()
    assert [action.job.meta.name for action in decided.actions if isinstance(action, DeleteJob)] == [
        before["metadata"]["name"]
    ]
    assert world.reconcile().actions == ()
    world.settle()
    (after,) = world.live_jobs()
    assert after["metadata"]["name"] != before["metadata"]["name"]
    assert entry(world, Stage.TRAIN).attempts == 0


def test_finished_jobs_of_obsolete_keys_are_deleted() -> None:
    """Jobs of the current keys stay, for `kubectl logs`."""
    world = a_finished_world()
    world.edit(training={"learningRate": "5e-4"})
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    assert sorted(job["metadata"]["labels"]["tunemill.dev/stage"] for job in world.jobs.values()) == [
        "prepare",
        "publish",
        "train",
    ]


def test_an_edit_reverted_while_the_pod_terminates_recreates_the_job() -> None:
    """The first Job is being deleted, which cannot be undone."""
    world = a_world_at(Stage.TRAIN)
    world.edit(training={"learningRate": "5e-4"})
    world.reconcile()
    world.edit(training={"learningRate": "Auto"})
    for _ in range(5):
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (Stage.PREPARE, {"publish": {"tokenSecretRef": {"name": "hf-other"}}}),
        (Stage.PREPARE, {"podTemplates": {"prepare": {"resources": {"limits": {"memory": "9Gi"}}}}}),
        (Stage.TRAIN, {"podTemplates": {"train": {"nodeSelector": {"gpu": "big"}}}}),
        (Stage.TRAIN, {"compute": {"gpus": 2}}),
        (Stage.PUBLISH, {"compute": {"trainerImage": "registry.example.com/mine:2"}}),
    ],
)
def test_a_changed_pod_template_replaces_the_live_job(stage: Stage, change: dict[str, Any]) -> None:
    """A corrected Secret name or node selector takes effect at once, on waiting and running pods."""
    world = a_world_at(stage)
    job = world.live_jobs()[0]["metadata"]
    world.edit(**change)
    decided = world.reconcile()
    assert [action.job.meta.uid for action in decided.actions if isinstance(action, DeleteJob)] == [job["uid"]]
    world.settle()
    (after,) = world.live_jobs()
    assert after["metadata"]["name"] == job["name"]
    assert after["metadata"]["uid"] != job["uid"]


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (Stage.PREPARE, {"podTemplates": {"train": {"nodeSelector": {"gpu": "big"}}}}),
        (Stage.TRAIN, {"publish": {"tokenSecretRef": {"name": "hf-other"}}}),
        (Stage.TRAIN, {"podTemplates": {"prepare": {"resources": {"limits": {"memory": "9Gi"}}}}}),
        (Stage.TRAIN, {"evaluation": {"gates": []}}),
        (Stage.TRAIN, {"maxRuntime": "9h"}),
        (Stage.TRAIN, {"training": {"checkpoint": {"everySteps": 5, "everyMinutes": 5}}}),
        (Stage.TRAIN, {"publish": {"repository": "acme/other"}}),
    ],
)
def test_an_unrelated_edit_does_not_interrupt_a_live_job(stage: Stage, change: dict[str, Any]) -> None:
    """A changed gate must not cost an hour of training."""
    world = a_world_at(stage)
    world.edit(**change)
    assert world.reconcile().actions == ()


def test_a_new_default_trainer_image_interrupts_no_job() -> None:
    """After an upgrade of the operator the next Job uses it."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    decided = plan(world.finetune, world.observed(), Platform("registry.example.com/trainer:2"), world.now)
    assert decided.actions == ()
    assert decided.status is not None
    assert decided.status.run is not None
    assert decided.status.run.image == "registry.example.com/trainer:1"


# Suspension and deadline


def test_suspending_deletes_the_job_and_reports_when_its_pod_has_terminated() -> None:
    """The condition Suspended is True only after the pod has terminated."""
    world = a_world_at(Stage.TRAIN)
    world.edit(suspend=True)
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [DeleteJob]
    assert condition(world, "Suspended").status == "False"
    world.settle()
    assert condition(world, "Suspended").status == "True"
    assert condition(world, "Reconciling").reason == "Suspended"
    assert world.status.phase is Phase.SUSPENDED
    assert entry(world, Stage.TRAIN).state is StageState.PENDING


def test_serving_instructions_are_in_the_status() -> None:
    """They are written once, and stay after the Jobs are deleted."""
    world = a_finished_world()
    world.edit(suspend=True)
    world.settle()
    assert world.status.serving is not None
    assert world.status.serving.command == "vllm serve a-base"
    assert world.status.published is not None
    assert world.status.published.serving is None


def test_suspending_a_published_object_changes_nothing() -> None:
    """No Job runs, and the object stays Ready."""
    world = a_finished_world()
    world.edit(suspend=True)
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


def test_suspended_time_does_not_count_against_the_deadline() -> None:
    """Only the running time of containers does, over all attempts."""
    world = a_world_at(Stage.TRAIN, maxRuntime="1h")
    world.reconcile()
    world.seconds += 1800
    world.edit(suspend=True)
    world.settle()
    world.seconds += 100_000
    world.edit(suspend=False)
    world.settle()
    assert world.status.phase is Phase.QUEUED
    world.start(world.live_pods()[0])
    decided = world.reconcile()
    assert world.status.phase is Phase.TRAINING
    assert entry(world, Stage.TRAIN).earlier_seconds == pytest.approx(1800, abs=15)
    assert decided.requeue_after is not None
    assert decided.requeue_after.total_seconds() == pytest.approx(1800, abs=30)
    world.seconds += 1900
    world.reconcile()
    assert world.status.failure.reason == Reason.DEADLINE_EXCEEDED
    world.settle()
    assert not world.live_jobs()


def test_raising_the_deadline_resumes_the_run() -> None:
    """The checkpoint exists; the same Job is created again."""
    world = a_world_at(Stage.TRAIN, maxRuntime="10m")
    world.seconds += 700
    world.settle()
    assert world.status.failure.reason == Reason.DEADLINE_EXCEEDED
    assert "spec.maxRuntime is 10m" in world.status.failure.message
    world.edit(maxRuntime="1h")
    for _ in range(3):
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


# Gates


@pytest.mark.parametrize(("on_failure", "phase"), [("Hold", Phase.HELD), ("Fail", Phase.FAILED)])
def test_a_missed_gate_holds_or_fails(on_failure: str, phase: Phase) -> None:
    """In both cases nothing is published, and Stalled has the metrics."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.95"}], "onGateFailure": on_failure}
    world = World(evaluation=gates)
    for _ in range(4):
        world.settle()
        world.run_pod()
    assert world.status.phase is phase
    assert labels(world) == ["prepare", "train"]
    assert condition(world, "GatePassed").status == "False"
    assert condition(world, "Evaluated").status == "True"
    assert "base 0.1000, tuned 0.9000" in world.status.failure.message


def test_a_missed_gate_can_publish_a_draft() -> None:
    """The draft is pushed, but the run is held, and neither published nor Ready."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.95"}], "onGateFailure": "Draft"}
    world = a_world_at(Stage.PUBLISH, evaluation=gates)
    assert world.status.phase is Phase.PUBLISHING
    assert condition(world, "Reconciling").status == "True"
    assert condition(world, "GatePassed").status == "False"
    world.run_pod()
    world.settle()
    assert world.status.phase is Phase.HELD
    assert [condition(world, kind).status for kind in ("Ready", "Reconciling", "Stalled")] == ["False", "False", "True"]
    assert (condition(world, "Published").status, condition(world, "Published").reason) == ("False", "Draft")
    assert world.status.published is None
    assert world.status.draft.branch == "tunemill-draft-1234"
    assert "exact_match >= 0.95 (base 0.1000, tuned 0.9000" in world.status.failure.message
    assert world.status.draft.url in world.status.failure.message
    assert world.events[-1] == "Warning GateNotPassed"
    assert not world.live_jobs()


def test_a_draft_is_published_when_its_gate_is_lowered() -> None:
    """Publish runs again for the user's branch, nothing is retrained, and the draft leaves the status."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.95"}], "onGateFailure": "Draft"}
    world = World(evaluation=gates)
    for _ in range(4):
        world.settle()
        world.run_pod()
    assert world.status.draft is not None
    world.edit(evaluation={"gates": [{"metric": "exact_match", "min": "0.9"}]})
    world.settle()
    world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish", "publish"]
    assert world.status.draft is None
    assert world.status.published.branch == "main"


def test_a_draft_is_pushed_again_when_it_misses_another_gate() -> None:
    """Its card lists the gates. With the same gates nothing happens."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.95"}], "onGateFailure": "Draft"}
    world = World(evaluation=gates)
    for change in ({}, {"maxRuntime": "9h"}, {"evaluation": {"gates": [{"metric": "exact_match", "min": "0.99"}]}}):
        world.edit(**change)
        for _ in range(4):
            world.settle()
            world.run_pod()
    assert world.status.phase is Phase.HELD
    assert labels(world) == ["prepare", "train", "publish", "publish"]
    assert "exact_match >= 0.99" in world.status.failure.message


def test_raising_a_gate_while_publishing_stops_the_push() -> None:
    """The Job is deleted if it is still running."""
    world = a_world_at(Stage.PUBLISH)
    world.edit(evaluation={"gates": [{"metric": "exact_match", "min": "0.95"}]})
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [DeleteJob]
    assert world.status.phase is Phase.HELD


def test_a_gate_on_an_unmeasured_metric_is_missed() -> None:
    """A missing metric never passes."""
    world = World(evaluation={"gates": [{"metric": "abstention_accuracy", "min": "0.5"}]})
    for _ in range(4):
        world.settle()
        world.run_pod()
    assert world.status.phase is Phase.HELD
    assert "no held-out row measures abstention_accuracy" in world.status.failure.message


# Failures and retries


def test_a_permanent_failure_stays_until_an_edit_or_a_request() -> None:
    """Waiting starts no pod, and there is one event."""
    world = a_world_at(Stage.PREPARE)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED, "line 17")
    for _ in range(10):
        world.seconds += 3600
        world.settle()
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.message == "line 17"
    assert labels(world) == ["prepare"]
    assert world.events == ["Warning DatasetMalformed"]
    assert entry(world, Stage.PREPARE).state is StageState.FAILED


def test_a_retryable_failure_is_reported_during_retries_and_fails_after_the_limit() -> None:
    """retry.limit counts failures after the first attempt."""
    world = a_world_at(Stage.PREPARE, retry={"limit": 1})
    world.fail(world.live_pods()[0], Reason.S3_UNREACHABLE, "no route")
    world.reconcile()
    assert world.status.failure is None
    assert condition(world, "Reconciling").reason == "Retrying"
    assert "no route" in condition(world, "Reconciling").message
    world.settle()
    world.seconds += 10
    world.start(world.live_pods()[0])
    world.fail(world.live_pods()[0], Reason.S3_UNREACHABLE, "no route")
    world.settle()
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.retryable
    assert entry(world, Stage.PREPARE).attempts == 2


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_repeated_evictions_end_the_run_until_a_request(how: str) -> None:
    """The Job controller would replace the pod forever. The message is the kubelet's."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 1})
    for _ in range(2):
        world.evict(world.live_pods()[0], "The node was low on resource: ephemeral-storage.")
        world.settle()
        for pod in world.live_pods():
            world.seconds += 10
            world.start(pod)
    assert world.status.failure.reason == Reason.EVICTED
    assert "ephemeral-storage" in world.status.failure.message
    assert entry(world, Stage.TRAIN).state is StageState.FAILED
    world.seconds += 3600
    world.settle()
    assert not world.live_jobs()
    assert world.status.phase is Phase.FAILED
    if how == "edit":
        world.edit(podTemplates={"train": {"resources": {"requests": {"ephemeral-storage": "50Gi"}}}})
    else:
        world.request("now")
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("how", ["edit", "annotation"])
def test_a_failed_stage_is_retried_on_request(how: str) -> None:
    """By an edit that keeps its key, or by the annotation. The failure is removed from the status at once."""
    world = a_world_at(Stage.PUBLISH)
    world.fail(world.live_pods()[0], Reason.HUB_WRITE_DENIED)
    world.settle()
    assert world.status.failure.reason == Reason.HUB_WRITE_DENIED
    if how == "edit":
        world.edit(retry={"limit": 1})
    else:
        world.request("now")
    world.reconcile()
    assert world.status.failure is None
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world).count("publish") == 2
    assert labels(world).count("train") == 1


def test_an_interruption_costs_no_retry() -> None:
    """Exit code 75 follows a SIGTERM from outside, such as a manual kill or an unmarked preemption."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    world.fail(world.live_pods()[0], Reason.INTERRUPTED)
    world.settle()
    assert world.status.failure is None
    assert len(world.live_pods()) == 1


def test_a_preemption_costs_no_retry() -> None:
    """However often the node is drained."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    for _ in range(5):
        world.drain(world.live_pods()[0])
        world.settle()
        world.seconds += 10
        world.start(world.live_pods()[0])
    world.reconcile()
    assert world.status.phase is Phase.TRAINING
    assert entry(world, Stage.TRAIN).attempts == 6


def test_a_job_whose_pod_disappeared_before_its_report_was_read_is_rerun() -> None:
    """Prepare finds its committed output and exits early."""
    world = World()
    world.settle()
    world.run_pod()
    world.job_controller()
    world.lose(next(iter(world.pods.values())))
    world.seconds += 60
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "prepare", "train", "publish"]


@pytest.mark.parametrize("seconds", [0, 3600])
@pytest.mark.parametrize("seen", ["running", "nothing"])
def test_a_finished_job_is_evaluated_only_after_its_pods_were_observed(seen: str, seconds: int) -> None:
    """Jobs and pods have separate watches: the report may arrive long after the end of the Job."""
    world = World()
    world.settle()
    (pod,) = world.pods.values()
    world.start(pod)
    world.reconcile()
    running = pod["status"]["containerStatuses"][0]["state"]
    world.succeed(pod)
    ended = pod["status"]["containerStatuses"][0]["state"]
    world.job_controller()
    pod["status"] |= {"phase": "Running", "containerStatuses": [{"name": "prepare", "state": running}]}
    observed = world.observed() if seen == "running" else replace(world.observed(), pods=())
    decided = plan(world.finetune, observed, world.platform, at(world.seconds + seconds))
    assert decided.needs_pods
    assert decided.actions == ()
    assert decided.status is not None
    assert decided.status.failure is None
    pod["status"] |= {"phase": "Succeeded", "containerStatuses": [{"name": "prepare", "state": ended}]}
    world.settle()
    assert labels(world) == ["prepare", "train"]


def test_an_image_without_a_report_is_a_failure() -> None:
    """It exits with 0, but its result is unknown. The stage is not rerun forever."""
    world = a_world_at(Stage.PREPARE)
    world.end(world.live_pods()[0], 0, "all good")
    world.settle()
    assert world.status.failure.reason == Reason.INTERNAL_ERROR
    assert "report" in world.status.failure.message
    assert labels(world) == ["prepare"]


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH])
def test_outputs_of_an_emptied_workspace_are_recreated(stage: Stage) -> None:
    """The stage with the missing input restarts the run at prepare."""
    world = a_world_at(stage)
    world.empty_the_workspace()
    for _ in range(8):
        world.settle()
        world.seconds += 10
        world.run_pod()
    assert world.status.phase is Phase.SUCCEEDED
    assert world.outputs == set(Stage)


def test_repeatedly_missing_outputs_end_the_run() -> None:
    """retry.limit bounds the restarts."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 2})
    for _ in range(30):
        world.empty_the_workspace()
        world.settle()
        world.seconds += 10
        for pod in world.live_pods():
            world.start(pod)
            world.succeed(pod)
    assert world.status.failure.reason == Reason.STAGE_OUTPUT_MISSING
    assert labels(world).count("prepare") == 3


# What keeps a pod from starting


def waiting(world: World, reason: str, message: str) -> None:
    """Set the reason why the pod's container waits."""
    (pod,) = world.live_pods()
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": reason, "message": message}}


def test_an_unschedulable_pod_is_queued_and_not_failed() -> None:
    """The scheduler's message is shown. The watch reports changes, so nothing is polled."""
    world = World()
    world.settle()
    (pod,) = world.live_pods()
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    pod["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    ]
    decided = world.reconcile()
    assert world.status.phase is Phase.QUEUED
    assert condition(world, "Reconciling").reason == "Unschedulable"
    assert condition(world, "Reconciling").message == f"no node has enough free nvidia.com/gpu: {said}"
    assert condition(world, "Stalled").status == "False"
    assert decided.requeue_after is None


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_stalled_until_it_succeeds(reason: str) -> None:
    """Nothing is deleted: the kubelet retries, and the failure is removed when it succeeds."""
    world = World()
    world.settle()
    waiting(world, reason, "not found")
    world.reconcile()
    world.seconds += 120
    decided = world.reconcile()
    assert world.status.failure.reason == Reason.IMAGE_PULL_FAILED
    assert decided.actions == ()
    assert decided.requeue_after is not None
    world.start(world.live_pods()[0])
    world.reconcile()
    assert world.status.failure is None
    assert condition(world, "Stalled").status == "False"


def test_a_pod_warning_is_shown_with_its_field() -> None:
    """The kubelet's event names the volume, and the volume the field."""
    world = World(dataset={"credentialsSecretRef": {"name": "s3"}})
    world.settle()
    (pod,) = world.live_pods()
    message = 'MountVolume.SetUp failed for volume "dataset" : secret "s3" not found'
    world.warning_events = (WarningEvent(pod["metadata"]["uid"], "FailedMount", message, at(5)),)
    world.reconcile()
    assert world.status.failure.reason == Reason.SECRET_NOT_FOUND
    assert world.status.failure.message == 'the Secret "s3" of spec.dataset.credentialsSecretRef does not exist'
    assert condition(world, "Prepared").reason == Reason.SECRET_NOT_FOUND


def test_a_rejected_job_is_reported_and_retried() -> None:
    """An admission webhook may accept it later."""
    world = World()
    world.refusal = Refusal(403, "denied by policy gold-only", taken=False)
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.failure.reason == Reason.POD_REJECTED
    assert decided.requeue_after is not None


def test_a_spec_too_large_for_an_annotation_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod reads its spec from there. Pod templates are not included, as no stage needs them."""
    monkeypatch.setattr("tunemill_operator.engine.pods.RUN_SPEC_BYTES", 1000)
    world = World()
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.failure.reason == Reason.INVALID_SPEC
    assert "at most 1000 fit" in world.status.failure.message


# What else may lie around


@pytest.mark.parametrize("how", ["drained", "edited"])
def test_a_pod_stuck_on_a_dead_node_is_reported_and_awaited(how: str) -> None:
    """It may still write its checkpoint. When the node is removed, the stage runs elsewhere."""
    world = a_world_at(Stage.TRAIN)
    (pod,) = world.live_pods()
    pod["spec"] = {"nodeName": "gpu-7"}
    world.cut_off(pod)
    if how == "edited":
        world.edit(training={"epochs": 2})
    decided = world.reconcile()
    assert world.status.failure is None
    assert decided.requeue_after is not None
    assert decided.requeue_after.total_seconds() <= 60
    world.seconds += 61
    world.reconcile()
    assert world.status.failure.reason == Reason.NODE_LOST
    assert "node gpu-7 does not respond" in world.status.failure.message
    assert entry(world, Stage.TRAIN).state is not StageState.RUNNING
    writes = world.status_writes
    world.seconds += 600
    world.reconcile()
    assert (world.status_writes, world.live_jobs() != []) == (writes, True)
    world.lose(pod)
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED


def test_an_unavailable_webhook_is_reported_and_retried() -> None:
    """The run continues without an edit."""
    world = World()
    world.refusal = Refusal(500, 'failed calling webhook "jobs.example.com": connection refused', taken=False)
    assert world.reconcile().requeue_after is not None
    assert world.status.failure is None
    world.seconds += 120
    decided = world.reconcile()
    assert world.status.failure.reason == Reason.WEBHOOK_UNAVAILABLE
    assert decided.requeue_after is not None
    world.refusal = None
    world.settle()
    assert world.status.failure is None


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH])
def test_a_running_object_survives_upgrade_and_rollback(stage: Stage) -> None:
    """Neither restarts a stage; only counters unknown to the other version start at zero."""
    world = a_world_at(stage)
    world.reconcile()
    status = world.finetune_body["status"]
    kept = ("observedGeneration", "phase", "conditions", "run", "stages", "prepared", "trained", "evaluation", "gates")
    older = {name: value for name, value in status.items() if name in kept}
    old_entry = ("name", "state", "key", "executed", "attempts", "startedAt", "finishedAt", "earlierSeconds", "job")
    older["stages"] = [{name: entry[name] for name in old_entry if name in entry} for entry in status["stages"]]
    older["run"] = {name: status["run"][name] for name in ("id", "startedAt", "image")}
    older["somethingNewer"] = {"of": "which nothing is known"}
    world.finetune_body["status"] = older
    (job,) = world.live_jobs()
    assert world.reconcile().actions == ()
    assert [item["metadata"]["uid"] for item in world.live_jobs()] == [job["metadata"]["uid"]]
    before = list(world.created)
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert world.created[: len(before)] == before
    assert labels(world) == ["prepare", "train", "publish"]


def test_an_unknown_field_is_reported_with_the_component_to_upgrade() -> None:
    """The field of a newer CRD is not ignored."""
    world = World()
    world.finetune_body["spec"]["training"] = {"future": True}
    decided = world.reconcile()
    assert decided.actions == ()
    assert "spec.training.future: unknown field" in world.status.failure.message


def test_no_job_starts_before_the_pods_of_a_deleted_job_have_terminated() -> None:
    """A Job was deleted without its pod: two pods would write the same checkpoint."""
    world = a_world_at(Stage.TRAIN)
    world.jobs.clear()
    decided = world.reconcile()
    assert decided.actions == ()
    (pod,) = world.live_pods()
    assert pod["metadata"]["name"] in condition(world, "Reconciling").message
    world.lose(pod)
    assert [type(action) for action in world.reconcile().actions] == [CreateJob]


def test_jobs_of_an_earlier_object_of_the_same_name_are_awaited() -> None:
    """The garbage collector deletes them; they are not ours to delete."""
    world = a_world_at(Stage.TRAIN)
    world.finetune_body["metadata"]["uid"] = "uid-of-the-next"
    world.finetune_body.pop("status")
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.phase is Phase.PENDING
    world.jobs.clear()
    world.pods.clear()
    assert [type(action) for action in world.reconcile().actions] == [CreateJob]


def test_an_orphaned_job_of_the_same_name_is_a_conflict() -> None:
    """The garbage collector will not delete it."""
    world = World()
    world.settle()
    (job,) = world.jobs.values()
    job["metadata"]["ownerReferences"] = []
    world.pods.clear()
    world.reconcile()
    assert world.status.failure.reason == Reason.NAME_CONFLICT


# Progress


def test_progress_is_shown_while_its_stage_runs() -> None:
    """It is removed with the stage, and survives a restart of the operator in the status."""
    world = a_world_at(Stage.TRAIN)
    (pod,) = world.live_pods()
    world.seconds += 1
    figures = TrainerStatus(progress_percentage=7, estimated_remaining_seconds=3725, last_updated_time=world.now)
    world.progress = Progress(pod["metadata"]["uid"], figures)
    world.reconcile()
    assert (world.status.progress, world.status.eta) == ("7%", "1h2m")
    world.progress = None
    world.reconcile()
    assert world.status.progress == "7%"
    world.seconds += 1
    world.succeed(pod)
    world.start(pod)
    world.reconcile()
    assert world.status.phase is Phase.EVALUATING
    assert world.status.progress == ""


def test_progress_of_another_pod_is_ignored() -> None:
    """A terminating pod may still report."""
    world = a_world_at(Stage.TRAIN)
    world.progress = Progress("gone", TrainerStatus(progress_percentage=99, last_updated_time=world.now))
    world.reconcile()
    assert world.status.progress == ""


def test_a_waiting_object_is_reconciled_less_often_over_time() -> None:
    """A thousand objects may wait for one quota for a day; the first reconciles follow soon."""
    waits = [recheck_interval(timedelta(seconds=seconds)) for seconds in (4, 60, 600, 28_000)]
    assert waits == [timedelta(seconds=seconds) for seconds in (10, 15, 150, 300)]


def test_a_pod_that_does_not_start_is_not_polled() -> None:
    """Its events and watches report changes."""
    world = World()
    assert world.reconcile().requeue_after is None
    world.seconds = 60
    assert world.plan().requeue_after is None

"""Scheduled checks of the data, and models that must be better than the published one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from property.builders import NOON
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, condition, entry, labels
from tunemill_api.constants import ANNOTATION_RUN_SPEC
from tunemill_api.failures import Reason
from tunemill_api.finetune import Retrain
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, RunResult, StageState
from tunemill_operator.engine.retraining import time_after

HOURLY = {"schedule": "0 * * * *"}
OTHER_DATA = "fedcba9876543210"


def proceed(world: World, **report: Any) -> None:
    """Let everything go well until it rests."""
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod(**report)
    world.settle()


def at_hour(world: World, hour: int) -> None:
    """Move the clock to this hour after noon, and reconcile."""
    world.seconds = hour * 3600
    world.settle()


# When the data is checked


def test_a_schedule_reruns_prepare_and_unchanged_data_is_not_retrained() -> None:
    """Prepare reports the same key: the model stays published, and the history has one run."""
    world = a_finished_world(retrain=HOURLY)
    decided = world.reconcile()
    assert decided.requeue_after is not None
    assert world.now + decided.requeue_after == NOON + timedelta(hours=1)
    at_hour(world, 1)
    assert world.status.phase is Phase.PREPARING
    assert world.status.retrain.last_time == NOON + timedelta(hours=1)
    assert world.status.retrain.next_time == NOON + timedelta(hours=2)
    assert "Normal Retraining" in world.events
    proceed(world)
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish", "prepare"]
    assert [item.result for item in world.status.history] == [RunResult.SUCCEEDED]
    assert world.status.history[0].id == world.status.run.id


def test_changed_data_is_trained_on_and_published() -> None:
    """Until then the published model stays."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    assert world.status.phase is Phase.QUEUED
    assert condition(world, "Ready").status == "False"
    assert world.status.published is not None
    assert world.status.serving is not None
    proceed(world, key=OTHER_DATA, tuned="0.9500")
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish"] * 2
    assert [item.metrics["exact_match"] for item in world.status.history] == ["0.9500", "0.9000"]


def test_missed_schedule_times_are_made_up_for_once() -> None:
    """After an outage of the operator or a long run there is one check, not one for each hour."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 30)
    proceed(world)
    assert labels(world).count("prepare") == 2
    assert world.status.retrain.next_time == NOON + timedelta(hours=31)


def test_a_scheduled_check_waits_for_the_current_run() -> None:
    """Two runs of one object never overlap."""
    world = a_world_at(Stage.TRAIN, retrain=HOURLY)
    world.seconds = 2 * 3600
    world.settle()
    assert world.status.phase is Phase.TRAINING
    proceed(world)
    assert labels(world) == ["prepare", "train", "publish", "prepare"]


def test_a_run_that_waits_for_a_missing_object_counts_as_running() -> None:
    """It continues by itself, and is not replaced."""
    world = World(retrain=HOURLY)
    world.settle()
    (pod,) = world.live_pods()
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    world.settle()
    (job,) = world.live_jobs()
    at_hour(world, 1)
    assert [item["metadata"]["uid"] for item in world.live_jobs()] == [job["metadata"]["uid"]]


def test_a_failed_run_is_retried_at_the_next_scheduled_time() -> None:
    """The data may have been corrected."""
    world = a_world_at(Stage.PREPARE, retrain=HOURLY)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED)
    world.settle()
    assert world.status.phase is Phase.FAILED
    at_hour(world, 1)
    assert world.status.failure is None
    proceed(world)
    assert world.status.phase is Phase.SUCCEEDED


def test_a_suspended_object_is_not_checked() -> None:
    """Not even a published one that has no Job to stop."""
    world = a_finished_world(retrain=HOURLY)
    world.edit(suspend=True)
    at_hour(world, 3)
    assert labels(world) == ["prepare", "train", "publish"]
    world.edit(suspend=False)
    proceed(world)
    assert labels(world)[-1] == "prepare"


@pytest.mark.parametrize("change", [None, {"schedule": "30 * * * *"}, {"schedule": "0 * * * *", "promote": "Always"}])
def test_changing_or_removing_a_schedule_starts_no_run(change: dict[str, str] | None) -> None:
    """The last check stays valid."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 1)
    proceed(world)
    before = list(world.created)
    world.edit(retrain=None)
    world.settle()
    if change:
        world.edit(retrain=change)
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert world.created == before


@pytest.mark.parametrize(
    ("retrain", "words"),
    [
        ({"schedule": "61 * * * *"}, "spec.retrain.schedule is '61 * * * *': Bad minute"),
        ({"schedule": "0 0 30 2 *"}, "spec.retrain.schedule is '0 0 30 2 *'"),
        ({"schedule": "0 0 * * *", "timeZone": "Mars/Base"}, "spec.retrain.timeZone is 'Mars/Base'"),
        ({"schedule": "0 0 * * *", "timeZone": "Europe"}, "spec.retrain.timeZone is 'Europe'"),
    ],
)
def test_an_invalid_schedule_is_reported_and_stops_no_run(retrain: dict[str, str], words: str) -> None:
    """With the field, the error and an example."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    world.edit(retrain=retrain)
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.failure.reason == Reason.INVALID_SPEC
    assert words in world.status.failure.message
    world.edit(retrain={"timeZone": "Etc/UTC", **HOURLY})
    proceed(world)
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("schedule", "zone", "moment", "expected"),
    [
        ("0 2 * * 0", "Etc/UTC", "2026-11-21T12:00", "2026-11-22T02:00"),
        ("0 2 * * 0", "America/New_York", "2026-11-21T12:00", "2026-11-22T07:00"),
        ("30 2 * * *", "Europe/Berlin", "2027-03-27T12:00", "2027-03-28T01:00"),  # 02:30 does not exist that night
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", "2026-10-25T00:30"),  # it comes twice: the first counts
        ("0 0 1 JAN *", "Asia/Tokyo", "2026-11-21T12:00", "2026-12-31T15:00"),
        ("0 0 29 2 *", "Etc/UTC", "2026-11-21T12:00", "2028-02-29T00:00"),
    ],
)
def test_schedule_times_are_in_the_time_zone(schedule: str, zone: str, moment: str, expected: str) -> None:
    """With daylight saving time."""
    found = time_after(Retrain(schedule=schedule, time_zone=zone), datetime.fromisoformat(moment).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


# Which model stays


def run_spec(world: World) -> RunSpec:
    """Return the RunSpec of the running pod."""
    (pod,) = world.live_pods()
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])


def a_retrained_world(tuned: str, **parts: Any) -> World:
    """Return a world whose data has changed and was trained on, with this metric."""
    world = a_finished_world(retrain={**HOURLY, **parts})
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    proceed(world, key=OTHER_DATA, tuned=tuned)
    return world


def test_the_new_model_is_compared_with_the_published_one() -> None:
    """The evaluating pod gets the published model in its RunSpec. The first model has none."""
    world = a_world_at(Stage.TRAIN, retrain=HOURLY)
    assert (run_spec(world).rival is None) or run_spec(world).rival.train == ""
    proceed(world)
    first = entry(world, Stage.TRAIN).key
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    rival = run_spec(world).rival
    assert rival is not None
    assert (rival.train, rival.prepare) == (first, "0123456789abcdef")


def test_a_model_that_is_not_better_is_not_published() -> None:
    """The object is Ready: the best model stays published."""
    world = a_retrained_world(tuned="0.9000")
    assert labels(world) == ["prepare", "train", "publish", "prepare", "train"]
    assert world.status.phase is Phase.SUCCEEDED
    assert condition(world, "Ready").status == "True"
    assert condition(world, "Ready").reason == "NotBetter"
    assert "exact_match 0.9000 against 0.9000 on the same 10 held-out rows" in condition(world, "Ready").message
    assert condition(world, "Published").reason == "NotBetter"
    assert world.status.published is not None
    assert "Normal NotBetter" in world.events
    assert [item.result for item in world.status.history] == [RunResult.NOT_BETTER, RunResult.SUCCEEDED]
    writes = world.status_writes
    world.seconds += 60
    world.settle()
    assert world.status_writes == writes


def test_the_next_model_is_compared_with_the_published_one_not_with_a_dropped_one() -> None:
    """A model that was not better is not a reference."""
    world = a_retrained_world(tuned="0.5000")
    incumbent = world.status.incumbent
    at_hour(world, 2)
    world.run_pod(key="aaaabbbbccccdddd")
    world.settle()
    assert run_spec(world).rival.train == incumbent.train
    proceed(world, key="aaaabbbbccccdddd", tuned="0.9100")
    assert condition(world, "Ready").reason == "Published"
    assert world.status.incumbent.train == entry(world, Stage.TRAIN).key


def test_publishing_does_not_rerun_evaluate() -> None:
    """The model to compare with is fixed when evaluate is first requested."""
    world = a_retrained_world(tuned="0.9500")
    assert condition(world, "Ready").reason == "Published"
    before = list(world.created)
    world.edit(podTemplates={"train": {"labels": {"a": "b"}}})
    world.seconds += 60
    world.settle()
    assert world.created == before
    assert entry(world, Stage.EVALUATE).state is StageState.SUCCEEDED


def test_always_publishes_whatever_passes_the_gates() -> None:
    """Nothing is compared, and no GPU time is spent on it."""
    world = a_retrained_world(tuned="0.5000", promote="Always")
    assert condition(world, "Ready").reason == "Published"
    assert world.status.rival.train == ""


def test_a_model_that_was_not_better_can_be_published_by_an_edit() -> None:
    """Nothing is trained or evaluated again."""
    world = a_retrained_world(tuned="0.5000")
    world.edit(retrain={"promote": "Always"})
    proceed(world, key=OTHER_DATA)
    assert condition(world, "Ready").reason == "Published"
    assert labels(world)[5:] == ["publish"]


def test_gates_take_precedence_over_the_comparison() -> None:
    """A model that misses a gate is held."""
    world = a_finished_world(retrain=HOURLY, evaluation={"gates": [{"metric": "exact_match", "min": "0.8"}]})
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    proceed(world, key=OTHER_DATA, tuned="0.7000")
    assert world.status.phase is Phase.HELD


def test_a_draft_is_pushed_whether_it_is_better_or_not() -> None:
    """It replaces no published model."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.8"}], "onGateFailure": "Draft"}
    world = a_finished_world(retrain=HOURLY, evaluation=gates)
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    proceed(world, key=OTHER_DATA, tuned="0.7000")
    assert world.status.phase is Phase.HELD
    assert world.status.draft is not None
    assert world.status.published is not None
    assert not world.status.published.draft
    assert world.status.incumbent.train != entry(world, Stage.TRAIN).key

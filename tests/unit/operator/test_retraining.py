"""Data that is looked at on a schedule, and models that have to be better than the published one."""

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


def go_on(world: World, **report: Any) -> None:
    """Let everything go well until it rests."""
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod(**report)
    world.settle()


def at_hour(world: World, hour: int) -> None:
    """Let it become so many hours after noon, and the operator look."""
    world.seconds = hour * 3600
    world.settle()


# When the data is looked at


def test_at_its_time_prepare_looks_again_and_unchanged_data_trains_nothing() -> None:
    """What it finds has the same key: published it stays, and the history tells of one run."""
    world = a_finished_world(retrain=HOURLY)
    decided = world.reconcile()
    assert decided.requeue_after is not None
    assert world.now + decided.requeue_after == NOON + timedelta(hours=1)
    at_hour(world, 1)
    assert world.status.phase is Phase.PREPARING
    assert world.status.retrain.last_time == NOON + timedelta(hours=1)
    assert world.status.retrain.next_time == NOON + timedelta(hours=2)
    assert "Normal Retraining" in world.events
    go_on(world)
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish", "prepare"]
    assert [item.result for item in world.status.history] == [RunResult.SUCCEEDED]
    assert world.status.history[0].id == world.status.run.id


def test_changed_data_is_trained_on_and_published() -> None:
    """The published model stays where it is until then."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    assert world.status.phase is Phase.QUEUED
    assert condition(world, "Ready").status == "False"
    assert world.status.published is not None
    assert world.status.serving is not None
    go_on(world, key=OTHER_DATA, tuned="0.9500")
    assert world.status.phase is Phase.SUCCEEDED
    assert labels(world) == ["prepare", "train", "publish"] * 2
    assert [item.metrics["exact_match"] for item in world.status.history] == ["0.9500", "0.9000"]


def test_times_that_are_missed_are_made_up_for_once() -> None:
    """After an operator that was away, or a long run: one look, not one an hour."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 30)
    go_on(world)
    assert labels(world).count("prepare") == 2
    assert world.status.retrain.next_time == NOON + timedelta(hours=31)


def test_no_run_is_disturbed_and_the_look_follows_its_end() -> None:
    """Two runs of one object never overlap."""
    world = a_world_at(Stage.TRAIN, retrain=HOURLY)
    world.seconds = 2 * 3600
    world.settle()
    assert world.status.phase is Phase.TRAINING
    go_on(world)
    assert labels(world) == ["prepare", "train", "publish", "prepare"]


def test_what_waits_for_something_missing_is_under_way() -> None:
    """It goes on by itself; nothing is replaced under it."""
    world = World(retrain=HOURLY)
    world.settle()
    (pod,) = world.live_pods()
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    world.settle()
    (job,) = world.live_jobs()
    at_hour(world, 1)
    assert [item["metadata"]["uid"] for item in world.live_jobs()] == [job["metadata"]["uid"]]


def test_a_failed_run_is_tried_again_at_the_next_time() -> None:
    """The data may have been mended."""
    world = a_world_at(Stage.PREPARE, retrain=HOURLY)
    world.fail(world.live_pods()[0], Reason.DATASET_MALFORMED)
    world.settle()
    assert world.status.phase is Phase.FAILED
    at_hour(world, 1)
    assert world.status.failure is None
    go_on(world)
    assert world.status.phase is Phase.SUCCEEDED


def test_a_suspended_object_is_not_looked_at() -> None:
    """Not even when it is published and had nothing to suspend."""
    world = a_finished_world(retrain=HOURLY)
    world.edit(suspend=True)
    at_hour(world, 3)
    assert labels(world) == ["prepare", "train", "publish"]
    world.edit(suspend=False)
    go_on(world)
    assert labels(world)[-1] == "prepare"


@pytest.mark.parametrize("change", [None, {"schedule": "30 * * * *"}, {"schedule": "0 * * * *", "promote": "Always"}])
def test_a_changed_or_removed_schedule_starts_nothing_by_itself(change: dict[str, str] | None) -> None:
    """What was looked at stays looked at."""
    world = a_finished_world(retrain=HOURLY)
    at_hour(world, 1)
    go_on(world)
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
def test_a_schedule_that_says_nothing_is_told_and_stops_nothing(retrain: dict[str, str], words: str) -> None:
    """The field, what is wrong and an example; what runs goes on."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    world.edit(retrain=retrain)
    decided = world.reconcile()
    assert decided.actions == ()
    assert world.status.failure.reason == Reason.INVALID_SPEC
    assert words in world.status.failure.message
    world.edit(retrain={"timeZone": "Etc/UTC", **HOURLY})
    go_on(world)
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
def test_times_are_those_of_the_zone(schedule: str, zone: str, moment: str, expected: str) -> None:
    """Daylight saving included."""
    found = time_after(Retrain(schedule=schedule, time_zone=zone), datetime.fromisoformat(moment).replace(tzinfo=UTC))
    assert found == datetime.fromisoformat(expected).replace(tzinfo=UTC)


# Which model stays


def run_spec(world: World) -> RunSpec:
    """Return the RunSpec of the running pod."""
    (pod,) = world.live_pods()
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC])


def a_retrained_world(tuned: str, **parts: Any) -> World:
    """Return a world whose data has changed and was trained on, with this figure."""
    world = a_finished_world(retrain={**HOURLY, **parts})
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    go_on(world, key=OTHER_DATA, tuned=tuned)
    return world


def test_the_new_model_is_judged_beside_the_published_one() -> None:
    """The pod that evaluates gets the rival in its RunSpec; the first model has none."""
    world = a_world_at(Stage.TRAIN, retrain=HOURLY)
    assert (run_spec(world).rival is None) or run_spec(world).rival.train == ""
    go_on(world)
    first = entry(world, Stage.TRAIN).key
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    world.settle()
    rival = run_spec(world).rival
    assert rival is not None
    assert (rival.train, rival.prepare) == (first, "0123456789abcdef")


def test_what_is_not_better_is_not_published_and_nobody_has_to_act() -> None:
    """The object is Ready: the best model there is is published."""
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


def test_after_a_model_that_was_not_better_the_next_is_compared_with_the_published_one() -> None:
    """Not with the one that was dropped."""
    world = a_retrained_world(tuned="0.5000")
    incumbent = world.status.incumbent
    at_hour(world, 2)
    world.run_pod(key="aaaabbbbccccdddd")
    world.settle()
    assert run_spec(world).rival.train == incumbent.train
    go_on(world, key="aaaabbbbccccdddd", tuned="0.9100")
    assert condition(world, "Ready").reason == "Published"
    assert world.status.incumbent.train == entry(world, Stage.TRAIN).key


def test_a_published_model_is_not_judged_anew_because_it_is_published() -> None:
    """What it was compared with is settled when it is first asked for."""
    world = a_retrained_world(tuned="0.9500")
    assert condition(world, "Ready").reason == "Published"
    before = list(world.created)
    world.edit(podTemplates={"train": {"labels": {"a": "b"}}})
    world.seconds += 60
    world.settle()
    assert world.created == before
    assert entry(world, Stage.EVALUATE).state is StageState.SUCCEEDED


def test_always_publishes_whatever_passes_the_gates() -> None:
    """Nothing is compared, and no GPU time spent on it."""
    world = a_retrained_world(tuned="0.5000", promote="Always")
    assert condition(world, "Ready").reason == "Published"
    assert world.status.rival.train == ""


def test_a_model_that_was_not_better_can_be_published_all_the_same() -> None:
    """By saying so; nothing is trained or judged again."""
    world = a_retrained_world(tuned="0.5000")
    world.edit(retrain={"promote": "Always"})
    go_on(world, key=OTHER_DATA)
    assert condition(world, "Ready").reason == "Published"
    assert labels(world)[5:] == ["publish"]


def test_a_gate_comes_before_the_comparison() -> None:
    """What misses a gate is held, as ever."""
    world = a_finished_world(retrain=HOURLY, evaluation={"gates": [{"metric": "exact_match", "min": "0.8"}]})
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    go_on(world, key=OTHER_DATA, tuned="0.7000")
    assert world.status.phase is Phase.HELD


def test_a_draft_of_what_misses_a_gate_is_pushed_whether_it_is_better_or_not() -> None:
    """It takes nobody's place."""
    gates = {"gates": [{"metric": "exact_match", "min": "0.8"}], "onGateFailure": "Draft"}
    world = a_finished_world(retrain=HOURLY, evaluation=gates)
    at_hour(world, 1)
    world.run_pod(key=OTHER_DATA)
    go_on(world, key=OTHER_DATA, tuned="0.7000")
    assert world.status.phase is Phase.HELD
    assert world.status.draft is not None
    assert world.status.published is not None
    assert not world.status.published.draft
    assert world.status.incumbent.train != entry(world, Stage.TRAIN).key

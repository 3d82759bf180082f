"""The history of finished runs in the status."""

from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_finished_world, a_world_at
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import RunResult


def proceed(world: World, **report: Any) -> None:
    """Let everything go well until it rests."""
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod(**report)
    world.settle()


def results(world: World) -> list[RunResult]:
    """Return how the runs ended, the newest first."""
    return [entry.result for entry in world.status.history]


def test_a_published_run_is_in_the_history_with_its_metrics() -> None:
    """Once, with the time of its end."""
    world = a_finished_world()
    (entry,) = world.status.history
    assert (entry.id, entry.result) == (world.status.run.id, RunResult.SUCCEEDED)
    assert entry.metrics == {"exact_match": "0.9000"}
    assert entry.revision == world.status.published.revision
    world.seconds += 3600
    world.settle()
    assert world.status.history == [entry]


def test_finished_runs_are_kept_up_to_the_limit() -> None:
    """The newest first; a lower limit takes effect at once."""
    world = a_finished_world(historyLimit=2)
    for tag in ("v1", "v2", "v3"):
        world.edit(publish={"tag": tag})
        proceed(world)
    assert results(world) == [RunResult.SUCCEEDED] * 2
    assert world.status.history[0].id == world.status.run.id
    world.edit(historyLimit=0)
    proceed(world)
    assert results(world) == []


def test_a_retried_run_has_the_result_of_its_last_attempt() -> None:
    """It is one run with the same inputs."""
    world = a_world_at(Stage.TRAIN)
    world.fail(world.live_pods()[0], Reason.TRAINING_DIVERGED)
    world.settle()
    (failed,) = world.status.history
    assert (failed.result, failed.reason) == (RunResult.FAILED, Reason.TRAINING_DIVERGED)
    world.edit(retry={"limit": 1})
    proceed(world)
    assert results(world) == [RunResult.SUCCEEDED]
    assert world.status.history[0].id == failed.id


def test_a_run_interrupted_by_an_edit_is_recorded_as_replaced() -> None:
    """Its inputs were never finished."""
    world = a_world_at(Stage.TRAIN)
    world.edit(training={"learningRate": "5e-4"})
    proceed(world)
    assert results(world) == [RunResult.SUCCEEDED, RunResult.REPLACED]


def test_an_edit_before_any_work_started_is_not_recorded() -> None:
    """Two edits in a row are one run."""
    world = a_finished_world()
    world.edit(suspend=True)
    world.seconds += 10
    for rate in ("5e-4", "6e-4"):
        world.edit(training={"learningRate": rate})
        world.settle()
    assert results(world) == [RunResult.SUCCEEDED]


def test_a_held_run_and_its_publication_are_one_entry() -> None:
    """A gate is in no key: lowering it gives the same run another result."""
    world = World(evaluation={"gates": [{"metric": "exact_match", "min": "0.95"}]})
    proceed(world)
    (held,) = world.status.history
    assert (held.result, held.reason, held.metrics) == (RunResult.HELD, "GateNotPassed", {"exact_match": "0.9000"})
    world.edit(evaluation={"gates": []})
    proceed(world)
    assert results(world) == [RunResult.SUCCEEDED]


def test_a_retried_failure_is_not_recorded() -> None:
    """An image that cannot be pulled yet is shown as a failure, but is no result."""
    world = World()
    world.settle()
    (pod,) = world.live_pods()
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    world.settle()
    world.seconds += 120
    world.settle()
    assert world.status.failure is not None
    assert not world.status.failure.final
    assert results(world) == []


def ids(world: World) -> list[str]:
    """Return the ids of the runs in the history."""
    return [entry.id for entry in world.status.history]


@pytest.mark.parametrize("failed", [True, False])
def test_no_run_is_recorded_twice(failed: bool) -> None:
    """A request, a publication, and removing the annotation lead back to the id of the first run."""
    world = a_world_at(Stage.PREPARE)
    if failed:
        world.fail(world.live_pods()[0], Reason.HUB_WRITE_DENIED, "403")
    proceed(world)
    for value in ("2026-11-22", "", "2026-11-22", ""):
        if value:
            world.request(value)
        else:
            world.finetune_body["metadata"]["annotations"].pop("tunemill.dev/requested-at")
            world._touch(world.finetune_body)
        proceed(world)
        assert len(set(ids(world))) == len(ids(world))
        assert ids(world)[0] == world.status.run.id


def test_a_run_held_and_published_under_different_requests_is_recorded_once() -> None:
    """The gate is lowered in between."""
    world = World(evaluation={"gates": [{"metric": "exact_match", "min": "0.95"}]})
    proceed(world)
    world.request("2026-11-22")
    world.edit(evaluation={"gates": []})
    proceed(world)
    world.finetune_body["metadata"]["annotations"].pop("tunemill.dev/requested-at")
    world._touch(world.finetune_body)
    proceed(world)
    assert len(set(ids(world))) == len(ids(world))


def test_a_duplicate_id_in_the_history_is_repaired() -> None:
    """The API server rejects every status with a duplicate. The newest entry is kept."""
    world = a_finished_world()
    first = world.finetune_body["status"]["history"][0]
    older = {**first, "id": "0ther0ne", "finished": "2026-11-20T12:00:00Z"}
    twice = {**first, "result": "Failed", "finished": "2026-11-19T12:00:00Z"}
    world.finetune_body["status"]["history"] = [first, older, twice]
    world.settle()
    assert [(entry.id, entry.result) for entry in world.status.history] == [
        (first["id"], "Succeeded"),
        ("0ther0ne", "Succeeded"),
    ]

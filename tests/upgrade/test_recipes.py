"""Effect of an upgrade on objects that are edited or requested afterwards, and on new ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, entry, labels
from tunemill_api import constants, keys
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase, StageState
from upgrade.recorded import a_recorded_world

FIRST = Path(__file__).parent / "7ae990e"


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that raises the recipes of some stages."""

    def raised(*stages: Stage) -> None:
        monkeypatch.setattr(
            keys, "RECIPES", {name: number + (Stage(name) in stages) for name, number in keys.RECIPES.items()}
        )

    return raised


def finish(world: World, **report: Any) -> list[str]:
    """Let the run finish, and return the labels of its Jobs."""
    before = len(world.created)
    for _ in range(5):
        world.settle()
        world.seconds += 60
        world.run_pod(**report)
    world.settle()
    return labels(world)[before:]


def run_spec(world: World) -> RunSpec:
    """Return the RunSpec of the live pod."""
    annotations = world.live_pods()[0]["metadata"]["annotations"]
    return RunSpec.model_validate_json(annotations[constants.ANNOTATION_RUN_SPEC])


# A request


def test_a_request_uses_the_current_recipes(upgrade) -> None:
    """Unchanged data is trained on again."""
    world = a_finished_world()
    upgrade(Stage.TRAIN)
    world.settle()
    assert len(world.created) == 3, "the upgrade itself starts nothing"
    world.request("2026-12-01T00:00:00Z")
    assert finish(world) == ["prepare", "train", "publish"]
    assert world.status.phase is Phase.SUCCEEDED


def test_a_request_without_a_new_recipe_reruns_only_prepare() -> None:
    """Unchanged outputs are reused."""
    world = a_finished_world()
    world.request("2026-12-01T00:00:00Z")
    assert finish(world, executed=False) == ["prepare"]
    assert world.status.phase is Phase.SUCCEEDED


# An edit


def test_an_edit_of_publish_keeps_the_output_of_an_older_training_recipe(upgrade) -> None:
    """Only publish uses the new recipe, with the recorded keys of earlier stages."""
    world = a_finished_world()
    trained, evaluated = entry(world, Stage.TRAIN).key, entry(world, Stage.EVALUATE).key
    upgrade(*Stage)
    world.edit(publish={"tag": "v1"})
    world.settle()
    given = run_spec(world).keys
    assert given[Stage.TRAIN] == trained
    assert given[Stage.EVALUATE] == evaluated
    assert finish(world) == []
    assert labels(world)[3:] == ["publish"]
    assert world.status.phase is Phase.SUCCEEDED


def test_an_edit_of_training_keeps_the_output_of_an_older_prepare_recipe(upgrade) -> None:
    """Train and later stages use the new recipes."""
    world = a_finished_world()
    upgrade(*Stage)
    world.edit(training={"epochs": 2})
    assert finish(world) == ["train", "publish"]


def test_an_edit_that_affects_no_output_reruns_nothing_after_an_upgrade(upgrade) -> None:
    """For example new credentials."""
    world = a_finished_world()
    upgrade(*Stage)
    world.edit(dataset={"credentialsSecretRef": {"name": "s3"}}, retry={"limit": 1})
    assert finish(world) == []


# A run in progress


def test_a_stage_that_has_not_started_uses_the_current_recipe(upgrade) -> None:
    """The training continues with its key; publish, which has not started, gets a key of the new recipe."""
    world = a_world_at(Stage.TRAIN)
    before = {stage: entry(world, stage).key for stage in Stage}
    upgrade(Stage.TRAIN, Stage.EVALUATE, Stage.PUBLISH)
    world.settle()
    after = {stage: entry(world, stage).key for stage in Stage}
    changed = [stage for stage in Stage if before[stage] != after[stage]]
    assert changed == [Stage.PUBLISH]
    assert finish(world) == ["publish"]
    assert world.status.phase is Phase.SUCCEEDED


def test_a_job_that_has_just_been_created_keeps_its_key(upgrade) -> None:
    """No pod has started when the operator is replaced."""
    world = a_world_at(Stage.PREPARE)
    world.succeed(world.live_pods()[0])
    world.job_controller()
    world.reconcile()
    assert labels(world) == ["prepare", "train"]
    upgrade(Stage.TRAIN, Stage.EVALUATE)
    assert world.plan().actions == ()


def test_a_suspended_training_resumes_with_its_key(upgrade) -> None:
    """Its checkpoints are stored under it."""
    world = a_world_at(Stage.TRAIN)
    key = entry(world, Stage.TRAIN).key
    world.edit(suspend=True)
    for _ in range(4):
        world.settle()
    assert not world.jobs.keys() & {name for name in world.created if "train" in name}
    upgrade(*Stage)
    world.edit(suspend=False)
    world.settle()
    assert run_spec(world).keys[Stage.TRAIN] == key


# An object without a status


def test_an_object_recreated_from_git_uses_the_current_recipes(upgrade) -> None:
    """Its status is lost: with the same recipes it reuses its outputs, with new ones it recomputes them."""
    first = a_finished_world()
    again = a_finished_world()
    assert [entry(again, stage).key for stage in Stage] == [entry(first, stage).key for stage in Stage]
    upgrade(Stage.TRAIN)
    later = a_finished_world()
    assert entry(later, Stage.PREPARE).key == entry(first, Stage.PREPARE).key
    assert entry(later, Stage.TRAIN).key != entry(first, Stage.TRAIN).key


# A status without inputs, of the operator of 7ae990e


def a_recorded(name: str) -> World:
    """Return a recorded object that the present operator has not seen yet."""
    return a_recorded_world(FIRST / f"{name}.json")


def test_an_edit_during_the_upgrade_reruns_only_the_affected_stages() -> None:
    """The generation is new to both operators: the status is compared with what the older one would write."""
    world = a_recorded("succeeded")
    world.edit(publish={"tag": "v1"})
    assert finish(world) == ["publish"]
    other = a_recorded("succeeded")
    other.edit(training={"epochs": 2})
    assert finish(other) == ["train", "publish"]
    unchanged = a_recorded("succeeded")
    unchanged.edit(retry={"limit": 1})
    assert finish(unchanged) == []


def test_a_request_during_the_upgrade_is_not_lost() -> None:
    """The older operator did not process it."""
    world = a_recorded("succeeded")
    world.request("2026-12-01T00:00:00Z")
    assert finish(world)[0] == "prepare"


def test_a_spec_that_the_older_operator_refused_is_checked_again() -> None:
    """It recorded the generation of the refused spec and the run of the earlier spec."""
    world = a_recorded("succeeded-with-profile")
    world.edit(compute={"gpus": 16}, training={"epochs": 2})
    refused = a_recorded("failed-for-a-limit").finetune_body["status"]["failure"]
    world.finetune_body["status"] |= {"observedGeneration": 2, "phase": "Failed", "failure": refused}
    world.settle()
    assert world.status.phase is Phase.FAILED
    assert world.status.failure.reason == "LimitExceeded"
    assert world.created == []


def test_removed_profile_fields_do_not_fail_the_run() -> None:
    """The status keeps them; the run uses the remaining fields."""
    path = FIRST / "succeeded-with-profile.json"
    fields = json.loads(path.read_text())["finetune"]["status"]["profile"]["fields"]
    world = a_recorded_world(path)
    world.finetune_body["status"]["profile"]["fields"] = {**fields, "compute.gone": "x"}
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    assert all(item.state is StageState.SUCCEEDED for item in world.status.stages)
    assert world.created == []

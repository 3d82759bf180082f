"""An upgrade changes no object: finished, running and failed ones stay as they are."""

from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS30Validator
from property.simulator import World
from property.worlds import entry, labels
from tunemill_api import keys
from tunemill_api.crd import object_schema
from tunemill_api.finetune import FineTuneSpec, effective_workspace
from tunemill_api.stage_report import Stage
from tunemill_api.status import FineTuneStatus, Phase, StageState
from tunemill_operator.engine import objects, profiles
from upgrade import record
from upgrade.added_fields import ADDED, with_added_fields
from upgrade.recorded import RECORDED, a_recorded_world, name_of, prepared_key
from upgrade.stored import stored_finetune

FLEET = pytest.mark.parametrize("path", RECORDED, ids=name_of)
AT_WORK = [path for path in RECORDED if path.stem.startswith(("pending", "preparing", "queued", "training"))]
AT_WORK += [path for path in RECORDED if path.stem.startswith(("evaluating", "publishing"))]


@pytest.fixture
def raised_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version in which every stage has a new recipe."""
    monkeypatch.setattr(keys, "RECIPES", {stage: number + 1 for stage, number in keys.RECIPES.items()})


@pytest.fixture
def added_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version in which every part of the spec has one more field."""
    later = with_added_fields(FineTuneSpec)
    monkeypatch.setattr(objects, "FineTuneSpec", later)
    monkeypatch.setattr(profiles, "FineTuneSpec", later)


def written(world: World) -> FineTuneStatus:
    """Reconcile the object, and return its status."""
    world.reconcile()
    world.finetune_body = stored_finetune(world.finetune_body)
    status: FineTuneStatus = world.status
    return status


def identity(status: FineTuneStatus) -> dict[str, Any]:
    """Return the fields that an upgrade must not change."""
    run = status.run
    begun = [item for item in status.stages if item.attempts]
    stages = {item.name: (item.key, item.state, item.attempts, item.started_at) for item in begun}
    return {
        "stages": stages,
        "run": run and (run.id, run.started_at, run.image),
        "history": status.history,
        "profile": status.profile,
        "published": status.published,
        # Later versions record more about a failure, and may word its remedy in another way.
        "failure": status.failure and status.failure.model_dump(include={"stage", "reason", "message"}),
    }


def assert_unchanged(path: Path) -> None:
    """Check that the operator neither acts on the object nor changes its status, now and later."""
    world = a_recorded_world(path)
    before, first = world.status, world.plan()
    assert first.actions == ()
    assert first.events == (), "events of an earlier version are not written again"
    after = written(world)
    if path.stem != "pending":  # its Job has been seen meanwhile
        assert identity(after) == identity(before)
        assert after.phase is before.phase
    assert all(item.inputs for item in after.stages if item.key), "what is recorded is adopted"
    again = world.plan()
    assert again.actions == ()
    assert again.events == ()
    assert again.status == after, "a second look has nothing more to write"


@FLEET
def test_an_upgrade_does_not_change_an_object(path: Path) -> None:
    """For each recorded object no Job is created or deleted, and nothing is reported again."""
    assert_unchanged(path)


@FLEET
@pytest.mark.usefixtures("raised_recipes")
def test_a_new_recipe_does_not_change_an_object(path: Path) -> None:
    """Finished, failed and running stages are kept."""
    assert_unchanged(path)


@FLEET
@pytest.mark.usefixtures("added_fields")
def test_a_new_field_with_a_default_does_not_change_an_object(path: Path) -> None:
    """Hashes do not depend on the set of API fields."""
    world = a_recorded_world(path)
    assert getattr(world.finetune.spec, ADDED) == "new"
    assert getattr(world.finetune.spec.training.checkpoint, ADDED) == "new"
    assert_unchanged(path)


@pytest.mark.usefixtures("raised_recipes")
def test_the_fleet_of_this_version_can_be_recorded(tmp_path: Path) -> None:
    """The next release can add its folder, and this version does not change its own objects."""
    record.main(tmp_path / "now")
    recorded = sorted((tmp_path / "now").glob("*.json"))
    assert {path.stem for path in recorded} >= {path.stem for path in RECORDED}
    for path in recorded:
        assert_unchanged(path)


@pytest.fixture(scope="module")
def crd() -> OAS30Validator:
    """The schema of the present CRD."""
    return OAS30Validator(object_schema())


@FLEET
def test_an_object_stays_valid_for_the_current_crd(crd: OAS30Validator, path: Path) -> None:
    """The API server accepts the status of an object that an older CRD validated and defaulted."""
    crd.validate(a_recorded_world(path).finetune_body)


@pytest.mark.parametrize("path", AT_WORK, ids=name_of)
@pytest.mark.usefixtures("raised_recipes")
def test_a_running_object_finishes_with_each_stage_run_once(path: Path) -> None:
    """With the Jobs of the older version."""
    world = a_recorded_world(path)
    begun = {item.name: item.key for item in world.status.stages if item.job}
    done = [item.name for item in world.status.stages if item.state is StageState.SUCCEEDED]
    jobs = set(world.jobs)
    for pod in world.pods.values():
        pod["status"].pop("conditions", None)  # there is a node for it now
    for _ in range(5):
        world.settle()
        world.admit()
        world.settle()
        world.seconds += 60
        for pod in world.live_pods():
            world.start(pod)
            world.reconcile()
        world.run_pod(key=prepared_key(path))
    world.settle()
    assert world.status.phase in {Phase.SUCCEEDED, Phase.HELD}
    assert {name: entry(world, Stage(name)).key for name in begun} == begun
    assert not set(labels(world)) & {"train" if name == "evaluate" else name for name in done}
    assert len(world.created) == len(set(world.created))
    assert not jobs & set(world.created), "a Job that runs is not created again"


@FLEET
def test_an_object_keeps_its_workspace(path: Path) -> None:
    """Later stages use the workspace of the version that started the run."""
    world = a_recorded_world(path)
    begun = world.status.run is not None
    after, spec = written(world), world.finetune.spec
    assert spec is not None
    if begun:
        preset = after.profile.fields.get("workspace.uri") if after.profile else None
        assert after.workspace == (preset or effective_workspace(spec).uri)

"""Where the outputs of an object are stored, also for runs of an older version."""

from property.builders import a_profile
from property.simulator import World
from property.worlds import a_finished_world, a_world_at
from tunemill_api.constants import ANNOTATION_RUN_SPEC
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage


def workspace_of_pod(world: World) -> str:
    """Return the workspace in the newest pod's RunSpec."""
    pod = list(world.pods.values())[-1]
    return RunSpec.model_validate_json(pod["metadata"]["annotations"][ANNOTATION_RUN_SPEC]).spec.workspace.uri


def of_an_older_version(world: World) -> World:
    """Return the world with the status of a version without namespace folders."""
    del world.finetune_body["status"]["workspace"]
    return world


def test_a_new_object_has_the_folder_of_its_namespace() -> None:
    """All stages get the same workspace, and the status shows it."""
    world = a_finished_world(workspace={"uri": "s3://acme/tunemill/"})
    assert world.status.workspace == workspace_of_pod(world) == "s3://acme/tunemill/team-a/"
    assert world.finetune_body["spec"]["workspace"]["uri"] == "s3://acme/tunemill/"


def test_a_default_workspace_has_the_folder_of_the_namespace() -> None:
    """It is in the bucket of the data."""
    world = a_world_at(Stage.TRAIN)
    assert world.status.workspace == workspace_of_pod(world)
    assert workspace_of_pod(world).endswith("/tunemill/team-a/")


def test_a_profile_can_place_the_namespace_in_its_workspace() -> None:
    """One profile for many namespaces gives each its own folder."""
    world = World()
    world.profiles = (a_profile("gold", default=True, defaults={"workspace": {"uri": "s3://acme/{namespace}/x/"}}),)
    world.settle()
    assert world.status.profile is not None
    assert world.status.profile.fields["workspace.uri"] == "s3://acme/{namespace}/x/"
    assert workspace_of_pod(world) == "s3://acme/team-a/x/"


def test_a_workspace_of_an_older_version_is_kept_until_it_is_changed() -> None:
    """Later stages find the outputs there, also after edits."""
    world = of_an_older_version(a_world_at(Stage.TRAIN, workspace={"uri": "s3://acme/tunemill/"}))
    for tag in ("v1", "v2"):
        world.edit(publish={"tag": tag})
        for _ in range(4):
            world.settle()
            world.run_pod()
        world.settle()
        assert world.status.workspace == workspace_of_pod(world) == "s3://acme/tunemill/"
    world.edit(workspace={"uri": "s3://acme/elsewhere/"})
    world.settle()
    assert world.status.workspace == workspace_of_pod(world) == "s3://acme/elsewhere/team-a/"
    world.edit(workspace={"uri": "s3://acme/tunemill/"})
    world.settle()
    assert world.status.workspace == "s3://acme/tunemill/team-a/"


def test_an_edit_cannot_use_the_workspace_of_another_namespace() -> None:
    """Neither by its folder name, nor by recorded values."""
    world = a_world_at(Stage.TRAIN, workspace={"uri": "s3://acme/tunemill/"})
    for uri in ("s3://acme/tunemill/team-b/", "s3://acme/tunemill/team-a/", "s3://acme/tunemill/team-{namespace}/"):
        world.edit(workspace={"uri": uri})
        world.settle()
        assert "team-a" in world.status.workspace.split("/")

"""Complete runs with killed pods and a killed operator."""

import pytest
from e2e.world import STEPS, World
from tunemill_api.constants import LABEL_FINETUNE
from tunemill_api.status import FineTuneStatus, Phase, StageState
from tunemill_dev.demo.results import stages_run
from tunemill_dev.testbed import HUB_SECRET, SYSTEM_NAMESPACE, FineTune

RUN_SECONDS = 600
# Not of the fixtures: building the images for the first time takes minutes.
pytestmark = pytest.mark.timeout(1500, func_only=True)


def state_of(status: FineTuneStatus, stage: str) -> StageState | None:
    """Return the state of a stage."""
    return next((each.state for each in status.stages if each.name == stage), None)


def uids(pods: list[dict]) -> set[str]:
    """Return the uids of pods, which may have the same name."""
    return {pod["metadata"]["uid"] for pod in pods}


def until_training(finetune: FineTune) -> FineTuneStatus:
    """Wait until the train container runs."""
    return finetune.follow(lambda status: state_of(status, "train") == StageState.RUNNING, RUN_SECONDS)


def test_a_held_model_is_published_after_an_edit_without_retraining(world: World):
    """The lifecycle of an object: held by a gate, published after the gate is removed, deleted, and applied again."""
    world.put_rows()
    finetune = world.apply(evaluation={"gates": [{"metric": "exact_match", "min": "1"}]})
    held = finetune.reach(Phase.HELD, RUN_SECONDS)
    assert held.failure.reason == "GateNotPassed"
    assert stages_run(FineTuneStatus(), held) == {"prepare": 1, "train": 1, "evaluate": 1, "publish": 0}
    assert finetune.pods("publish") == []
    assert held.trained.steps == STEPS
    assert held.evaluation.rows > 0

    finetune.edit({"evaluation": {"gates": []}})
    status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
    assert stages_run(held, status) == {"prepare": 0, "train": 0, "evaluate": 0, "publish": 1}
    published = world.testbed.hub.client().model_info(status.published.repository)
    assert (published.id, published.sha) == (world.repository, status.published.revision)
    assert {"adapter_model.safetensors", "README.md"} <= {file.rfilename for file in published.siblings}
    (train,) = finetune.pods("train")
    secrets = {volume["secret"]["secretName"] for volume in train["spec"]["volumes"] if "secret" in volume}
    assert secrets
    assert HUB_SECRET not in secrets
    texts = world.texts(world.repository)
    assert {"hub README.md", "objects"} <= texts.keys()
    for name, text in texts.items():
        assert not [value for value in world.secrets() if value.encode() in text], f"a secret is in {name}"

    finetune.delete()
    assert world.testbed.kubectl.list("jobs,pods", world.name, LABEL_FINETUNE) == []
    again = world.apply().reach(Phase.SUCCEEDED, RUN_SECONDS)
    ran = stages_run(FineTuneStatus(), again)
    assert (ran["train"], ran["evaluate"]) == (0, 0)


def test_a_killed_training_pod_resumes_from_its_checkpoint(world: World):
    """From the workspace, and no step is lost or repeated."""
    steps = 120
    world.put_rows()
    finetune = world.apply(training={"maxSteps": steps, "checkpoint": {"everySteps": 5}})
    finetune.follow(lambda _: bool(world.checkpoints()), RUN_SECONDS)
    (killed,) = finetune.pods("train")
    name = killed["metadata"]["name"]
    world.testbed.kubectl("delete", "pod", name, "--namespace", world.name, "--grace-period=1", "--wait=false")

    status = finetune.follow(lambda status: state_of(status, "train") == StageState.SUCCEEDED, RUN_SECONDS)
    assert status.trained.steps == steps
    assert 0 < status.trained.resumed_from_step < steps
    assert uids(finetune.pods("train")) != uids([killed])


def test_a_killed_operator_reruns_no_stage(world: World):
    """The run continues without it, and the next operator finds its result."""
    world.put_rows()
    finetune = world.apply()
    until_training(finetune)
    trains = uids(finetune.pods("train"))
    world.testbed.kubectl(
        *("delete", "pods", "--namespace", SYSTEM_NAMESPACE, "--selector", "app.kubernetes.io/name=tunemill"),
        *("--grace-period=0", "--force"),
    )

    status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
    assert uids(finetune.pods("train")) == trains
    assert {stage.name: stage.attempts for stage in status.stages} == dict.fromkeys(
        ("prepare", "train", "evaluate", "publish"), 1
    )

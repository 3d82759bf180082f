"""One model trained by two pods, each of which is killed once."""

import pytest
from e2e.world import World
from tunemill_api.constants import LABEL_FINETUNE
from tunemill_api.status import FineTuneStatus, Phase
from tunemill_dev.kubectl import Object
from tunemill_dev.testbed import FineTune

RUN_SECONDS = 600
LONG_STEPS = 150
TWO_NODES: Object = {"gpus": 0, "nodes": 2}
pytestmark = pytest.mark.timeout(1500, func_only=True)


def of_node(finetune: FineTune, index: int) -> Object:
    """Return the newest train pod with this index."""
    label = "batch.kubernetes.io/job-completion-index"
    pods = [pod for pod in finetune.pods("train") if pod["metadata"]["labels"][label] == str(index)]
    newest: Object = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])
    return newest


def train_of(status: FineTuneStatus):
    """Return the status of train."""
    return next(stage for stage in status.stages if stage.name == "train")


def test_two_pods_train_one_model_although_each_is_killed_once(world: World):
    """Pod 0 has the rendezvous store, pod 1 has not. The remaining pod exits, and both are restarted."""
    world.put_rows()
    finetune = world.apply(compute=TWO_NODES, training={"maxSteps": LONG_STEPS, "checkpoint": {"everySteps": 5}})
    finetune.follow(lambda _: bool(world.checkpoints()), RUN_SECONDS)
    for killed, index in enumerate([1, 0], start=1):
        name = of_node(finetune, index)["metadata"]["name"]
        world.testbed.kubectl("delete", "pod", name, "--namespace", world.name, "--grace-period=1", "--wait=false")
        finetune.follow(lambda status, before=killed: train_of(status).attempts > before, RUN_SECONDS)
        found = world.checkpoints()
        finetune.follow(lambda _, found=found: bool(world.checkpoints() - found), RUN_SECONDS)

    status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
    assert status.trained.steps == LONG_STEPS
    assert 0 < status.trained.resumed_from_step < LONG_STEPS
    assert status.published
    train = train_of(status)
    assert (train.nodes, sum(train.restarts.values())) == (2, train.attempts - 1)
    assert len(world.testbed.kubectl.list("services,networkpolicies", world.name)) == 2
    finetune.delete()
    assert world.testbed.kubectl.list("services,networkpolicies,jobs,pods", world.name, LABEL_FINETUNE) == []

"""Kueue, installed by its own chart, and real trainings on a node with capacity for one of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.world import World
from kube import queues
from kube.kubelet import eventually
from tunemill_api.constants import PLURAL
from tunemill_api.status import Phase, StageState
from tunemill_dev.cluster import binaries, running
from tunemill_dev.kubectl import CommandError, run
from tunemill_dev.testbed import Testbed

RUN_SECONDS = 600
STEPS = 300
"""Enough for another run to be prepared meanwhile, on a slow machine, too."""
NAMESPACE = "kueue-system"
QUOTA = {"cpu": "500m", "memory": "64Gi", "ephemeral-storage": "1Ti"}
"""Half a core in all, which is what a train pod of this test requests."""
POD_TEMPLATES = {"train": {"resources": {"requests": {"cpu": "500m", "memory": "256Mi"}, "limits": {"cpu": "1"}}}}
# While Kueue starts, its webhooks reject every Deployment, so no other test may install the chart at the same time.
pytestmark = [pytest.mark.timeout(1500, func_only=True), pytest.mark.xdist_group("chart")]


@pytest.fixture(scope="module")
def kueue(testbed: Testbed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kueue with a queue with capacity for one train pod; it is uninstalled afterwards."""
    if request.config.getoption("--context"):
        pytest.skip("installs a Kueue, which a cluster of yours may have already")
    image = _image(request.config.getoption("--cluster"), tmp_path_factory.mktemp("kueue"))
    repository, _, tag = image.rpartition(":")
    values = {"image.repository": repository, "image.tag": tag, "image.pullPolicy": "Never"}
    # It asks for half a core, on a node that has two for everything.
    values |= {"resources.requests.cpu": "100m"}
    chosen = ",".join(f"controllerManager.manager.{name}={value}" for name, value in values.items())
    chart = binaries.source_of(binaries.KUEUE, "sigs.k8s.io/kueue") / "charts" / "kueue"
    where = ("kueue", "--namespace", NAMESPACE)
    # Kueue looks at ever longer intervals whether the node has mounted the certificate that it made.
    waiting = ("--wait", "--timeout", "600s")
    try:
        run(
            (*testbed.helm, "upgrade", "--install", *where, str(chart), "--create-namespace", "--set", chosen, *waiting)
        )
        eventually(lambda: _has_queues(testbed), "Kueue's webhooks answer", seconds=60)
        yield
    finally:
        # In this order: Kueue takes its finalizers from what goes, and must be there for that.
        kinds = ("clusterqueues", "resourceflavors", "workloadpriorityclasses")
        # Only where queues were used: other tests run on the same cluster.
        kinds_of_kueue = f"localqueues.{queues.GROUP},workloads.{queues.GROUP}"
        found = json.loads(testbed.kubectl("get", kinds_of_kueue, "--all-namespaces", "--output", "json"))
        for namespace in {each["metadata"]["namespace"] for each in found["items"]}:
            for kind in (PLURAL, f"localqueues.{queues.GROUP}", f"workloads.{queues.GROUP}"):
                testbed.kubectl("delete", kind, "--all", "--namespace", namespace, "--timeout", "120s")
        for kind in kinds:
            testbed.kubectl("delete", f"{kind}.{queues.GROUP}", "--all", "--timeout", "60s")
        run((*testbed.helm, "uninstall", *where, "--wait", "--ignore-not-found"))


def _has_queues(testbed: Testbed) -> bool:
    """Create the queue and the priorities; return whether it worked. Kueue is ready before its webhooks respond."""
    try:
        testbed.kubectl.apply(
            queues.resource_flavor("cpus"),
            queues.cluster_queue("cpus", QUOTA),
            queues.priority_class("low", 1),
            queues.priority_class("high", 100),
        )
    except CommandError as error:
        if "failed calling webhook" not in str(error):
            raise
        return False
    return True


def _image(cluster: str, context: Path) -> str:
    """Build the image of Kueue, with the program at the path that its chart expects."""
    shutil.copy2(binaries.ensure([binaries.KUEUE])[binaries.KUEUE.name] / "kueue", context / "manager")
    (context / "Dockerfile").write_text(
        'FROM scratch\nCOPY manager /manager\nUSER 65532:65532\nENTRYPOINT ["/manager"]\n'
    )
    return running(cluster).build_image("kueue", context, context / "Dockerfile")


@pytest.mark.usefixtures("kueue")
def test_a_preempted_training_resumes_from_its_checkpoint(world: World):
    """It is queued, admitted, preempted, queued and admitted again; no step is lost or repeated."""
    world.testbed.kubectl.apply(queues.local_queue("team", world.name, of="cpus"))
    world.put_rows()
    patient = world.apply(
        "patient",
        training={"maxSteps": STEPS, "checkpoint": {"everySteps": 5}},
        queue={"name": "team", "priorityClass": "low"},
        retry={"limit": 0},
        podTemplates=POD_TEMPLATES,
    )
    patient.follow(lambda _: bool(world.checkpoints()), RUN_SECONDS)
    assert patient.status().queue.cluster_queue == "cpus"

    urgent = world.apply(
        "urgent",
        training={"seed": 7},
        publish={"branch": "urgent"},
        podTemplates=POD_TEMPLATES,
        queue={"name": "team", "priorityClass": "high"},
    )
    stopped = patient.follow(lambda status: status.run.preemptions == 1, RUN_SECONDS)
    assert stopped.phase == Phase.QUEUED
    assert urgent.reach(Phase.SUCCEEDED, RUN_SECONDS).published

    status = patient.reach(Phase.SUCCEEDED, RUN_SECONDS)
    assert status.trained.steps == STEPS
    assert 0 < status.trained.resumed_from_step < STEPS
    (train,) = (stage for stage in status.stages if stage.name == "train")
    assert (train.state, train.attempts, train.preemptions) == (StageState.SUCCEEDED, 2, 1)

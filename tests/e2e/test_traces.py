"""A real run as one trace, sent by its operator and its pods to a collector in the cluster."""

import inspect
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from api import collector
from e2e.world import World
from kube.kubelet import eventually
from tunemill_api.status import Phase
from tunemill_api.traces import SpanRef
from tunemill_dev.kubectl import Object

RUN_SECONDS = 600
STAGES = ["prepare", "train", "evaluate", "publish"]
NAME = "collector"
pytestmark = [pytest.mark.timeout(1200, func_only=True), pytest.mark.xdist_group("chart")]


@dataclass(frozen=True)
class CollectorPod:
    """A pod that logs every received span."""

    world: World

    def start(self) -> str:
        """Start it; return the address for spans."""
        kubectl, where = self.world.testbed.kubectl, ("--namespace", self.world.name)
        script = {"metadata": {"name": NAME}, "data": {"collector.py": inspect.getsource(collector)}}
        kubectl.apply({"apiVersion": "v1", "kind": "ConfigMap", **_in(self.world.name, script)}, self._pod())
        kubectl("wait", f"pod/{NAME}", *where, "--for=condition=Ready", "--timeout=120s")
        address = kubectl("get", f"pod/{NAME}", *where, "--output", "jsonpath={.status.podIP}")
        return f"http://{address}:4318"

    def spans(self) -> list[collector.Span]:
        """Return the received spans."""
        log = self.world.testbed.kubectl("logs", NAME, "--namespace", self.world.name)
        return [collector.Span(**json.loads(line)) for line in log.splitlines()]

    def _pod(self) -> Object:
        container = {
            "name": NAME,
            "image": self.world.testbed.operator_image,
            "command": ["python", "/code/collector.py"],
            "volumeMounts": [{"name": "code", "mountPath": "/code"}],
            "readinessProbe": {"tcpSocket": {"port": 4318}, "periodSeconds": 1},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec = {
            "containers": [container],
            "volumes": [{"name": "code", "configMap": {"name": NAME}}],
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        return {"apiVersion": "v1", "kind": "Pod", **_in(self.world.name, {"metadata": {"name": NAME}, "spec": spec})}


def _in(namespace: str, body: Object) -> Object:
    return {**body, "metadata": {**body["metadata"], "namespace": namespace}}


@pytest.fixture
def pod(world: World) -> Iterator[CollectorPod]:
    """The collector, with an operator that exports to it; afterwards the export is disabled."""
    pod = CollectorPod(world)
    world.testbed.install(tracing={"endpoint": pod.start()})
    try:
        yield pod
    finally:
        world.testbed.install()


def test_operator_and_stages_share_one_trace(world: World, pod: CollectorPod):
    """Each stage is a child span of the run with its own children, and they follow one another."""
    world.put_rows()
    finetune = world.apply()
    status = finetune.reach(Phase.SUCCEEDED, RUN_SECONDS)
    found = world.testbed.kubectl.get("functioncallfinetunes", finetune.name, world.name)
    run = SpanRef.of_run(found["metadata"]["uid"], status.run.id)

    def arrived() -> list[collector.Span]:
        # The operator also exports spans of other tests' objects.
        return [span for span in pod.spans() if span.trace == f"{run.trace:032x}"]

    def stages_of(spans: list[collector.Span]) -> dict[str, collector.Span]:
        return {span.name: span for span in spans if span.service == "tunemill-trainer" and span.name in STAGES}

    eventually(lambda: set(stages_of(arrived())) == set(STAGES), "every stage has sent its span", seconds=30)
    spans = arrived()
    stages = stages_of(spans)
    assert {span.parent for span in stages.values()} == {f"{run.span:016x}"}
    assert not any(span.failed for span in stages.values())
    for earlier, later in itertools.pairwise(STAGES):
        assert stages[earlier].end <= stages[later].start
    parts = {name: {span.name for span in spans if span.parent == stages[name].id} for name in STAGES}
    assert "download" in parts["prepare"]
    assert "train steps" in parts["train"]
    assert "generate" in parts["evaluate"]
    assert "push" in parts["publish"]
    operators = {span.name for span in spans if span.service == "tunemill-operator"}
    assert {"run", "reconcile", "POST"} <= operators

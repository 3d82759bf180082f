"""Malicious objects of a tenant, as accepted by a real API server, do not affect others or the operator's startup."""

from pathlib import Path

from kube.kubelet import eventually
from kube.operators import an_operator
from kube.plane import Json, Namespace, Plane
from tunemill_api.constants import ANNOTATION_GENERATION, LABEL_FINETUNE, LABEL_STAGE, PLURAL


def nested(depth: int) -> Json:
    """Return a value with this many levels."""
    value: Json = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def a_job(name: str) -> Json:
    """Return a Job that anybody with the edit role can create; it runs nothing."""
    pod = {
        "restartPolicy": "Never",
        "containers": [{"name": "x", "image": "x"}],
    }
    labels = {LABEL_FINETUNE: "deep", LABEL_STAGE: "train"}
    metadata = {"name": name, "labels": labels, "annotations": {ANNOTATION_GENERATION: "x"}}
    return {"metadata": metadata, "spec": {"suspend": True, "template": {"spec": pod}}}


def test_valid_objects_are_served_among_malicious_ones(plane: Plane, namespace: Namespace, tmp_path: Path) -> None:
    """Deep and large statuses, and Jobs with odd annotations: before startup, and while the operator runs."""
    attacker = plane.namespace("attacker")

    def attack(name: str) -> None:
        attacker.apply(name)
        for fields in (nested(600), {"a": "x" * 1_000_000}):
            attacker.plane.api.patch(
                f"{attacker.path(PLURAL, name)}/status", {"status": {"profile": {"name": "p", "fields": fields}}}
            )
        attacker.plane.api.post(attacker.path("jobs"), a_job(f"job-of-{name}"))

    attack("before")
    attacker.apply("deep")
    attacker.plane.api.patch(
        f"{attacker.path(PLURAL, 'deep')}/status", {"status": {"profile": {"name": "p", "fields": nested(600)}}}
    )
    for life in range(2):
        log = tmp_path / f"operator-{life}.log"
        with an_operator(plane.kubeconfig, log, "--no-leader-election") as operator:
            name = f"valid-{life}"
            namespace.apply(name)
            namespace.wait_for(name, "Succeeded")
            attack(f"meanwhile-{life}")
            stalled = eventually(
                lambda name=f"meanwhile-{life}": attacker.condition(name, "Stalled").get("status") == "True",
                "the large object is Stalled",
            )
            assert stalled
            assert "make it smaller" in attacker.condition(f"meanwhile-{life}", "Stalled")["message"]
            namespace.apply(f"{name}-after")
            namespace.wait_for(f"{name}-after", "Succeeded")
            assert operator.process.poll() is None
            assert operator.probe("/readyz")[0] == 200
            assert operator.stop() == 0

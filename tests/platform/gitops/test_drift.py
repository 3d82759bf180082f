"""Neither API defaults nor the operator's writes cause drift from Git."""

import json
import subprocess
from dataclasses import dataclass
from functools import partial

import pytest
import yaml
from chart.rendering import NAMESPACE, render
from gitops.engines import KIT, REPOSITORY, out_of_sync
from kube.kubelet import eventually
from kube.plane import Json, Namespace, Plane
from tunemill_api.constants import FIELD_MANAGER, KIND

pytestmark = pytest.mark.usefixtures("operator")

SAMPLES = sorted((REPOSITORY / "crds" / "samples").glob("*.yaml"))


@dataclass(frozen=True)
class Kubectl:
    """kubectl, with all manifests of the repository."""

    namespace: Namespace

    def manifests(self) -> list[Json]:
        """Return every sample and the team's overlay, moved into the namespace."""
        texts = [path.read_text() for path in SAMPLES]
        texts.append(self._run("kustomize", str(KIT / "kustomize" / "team-a"), given="").stdout)
        bodies = [body for text in texts for body in yaml.safe_load_all(text) if body["kind"] in {KIND, "ConfigMap"}]
        # Two samples may share a name.
        for number, body in enumerate(bodies):
            metadata = body["metadata"]
            name = f"{metadata['name']}-{number}" if body["kind"] == KIND else metadata["name"]
            body["metadata"] = {**metadata, "name": name, "namespace": self.namespace.name}
        return bodies

    def apply(self, bodies: list[Json], *how: str) -> None:
        """Apply the manifests."""
        self._run("apply", "-f", "-", *how, given=_documents(bodies))

    def delete(self, bodies: list[Json]) -> None:
        """Delete the objects of the manifests."""
        self._run("delete", "-f", "-", "--wait=false", given=_documents(bodies))

    def diff(self, bodies: list[Json], *how: str) -> str:
        """Return the changes of an apply, from kubectl diff."""
        return self._run("diff", "-f", "-", *how, given=_documents(bodies), may_differ=True).stdout

    def _run(self, *arguments: str, given: str, may_differ: bool = False) -> subprocess.CompletedProcess[str]:
        plane = self.namespace.plane
        command = [plane.kubectl, "--kubeconfig", plane.kubeconfig, *arguments]
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or (may_differ and done.returncode == 1), done.stderr
        return done


def _documents(bodies: list[Json]) -> str:
    # Not as YAML: PyYAML would write the word "1e-4" as what kubectl reads as a number.
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies})


def _at_rest(namespace: Namespace, name: str) -> Json | None:
    """Return the object once its run has ended, with any result."""
    body = namespace.get(name)
    return body if body.get("status", {}).get("phase") in {"Succeeded", "Held", "Failed"} else None


def _spec_and_generation(body: Json) -> tuple[int, Json]:
    """Return the spec and the generation of an object."""
    return body["metadata"]["generation"], body["spec"]


@pytest.mark.parametrize("engine", ["kustomize-controller", "argocd-controller", "by-hand"])
def test_applying_again_changes_nothing(namespace: Namespace, engine: str) -> None:
    """Every manifest of ours, applied like by Flux, Argo CD and kubectl, after the operator has written its fields."""
    how = () if engine == "by-hand" else ("--server-side", f"--field-manager={engine}")
    kubectl = Kubectl(namespace)
    bodies = kubectl.manifests()
    kubectl.apply(bodies, *how)
    names = [body["metadata"]["name"] for body in bodies if body["kind"] == KIND]
    for name in names:
        eventually(partial(_at_rest, namespace, name), f"{name} is at rest", 120)
    before = {name: _spec_and_generation(namespace.get(name)) for name in names}
    assert kubectl.diff(bodies, *how) == ""
    kubectl.apply(bodies, *how)
    assert {name: _spec_and_generation(namespace.get(name)) for name in names} == before
    assert out_of_sync(namespace.plane.kubeconfig, bodies) == []


def test_the_operator_owns_only_the_status(namespace: Namespace) -> None:
    """No engine has conflicts with it."""
    kubectl = Kubectl(namespace)
    body = next(body for body in kubectl.manifests() if body["kind"] == KIND)
    kubectl.apply([body], "--server-side", "--field-manager=kustomize-controller")
    found = eventually(lambda: _at_rest(namespace, body["metadata"]["name"]), "it is at rest")
    owners = {
        (entry["manager"], entry.get("subresource", "")): set(entry["fieldsV1"])
        for entry in found["metadata"]["managedFields"]
    }
    assert owners == {
        ("kustomize-controller", ""): {"f:spec"},
        (FIELD_MANAGER, "status"): {"f:status"},
    }


def test_the_chart_stays_in_sync_after_the_operator_stored_its_certificate(plane: Plane) -> None:
    """Neither the operator's Secret nor fields set by the API server are a difference for Argo CD."""
    application = yaml.safe_load((KIT / "argocd" / "operator.yaml").read_text())
    values = application["spec"]["source"]["helm"]["valuesObject"]
    bodies = [body for body in render(**values).objects if body["kind"] != "CustomResourceDefinition"]
    kubectl = Kubectl(plane.namespace(NAMESPACE))
    kubectl.apply(bodies, "--server-side", "--field-manager=argocd-controller")
    (secret,) = [body["metadata"]["name"] for body in bodies if body["kind"] == "Secret"]
    kubectl.namespace.plane.api.patch(kubectl.namespace.path("secrets", secret), {"data": {"tls.key": "a2V5"}})
    assert out_of_sync(plane.kubeconfig, bodies) == []
    kubectl.delete(bodies)


def test_a_manually_changed_field_is_detected(namespace: Namespace) -> None:
    """The comparison of the tests above works: all three ways to compare show it."""
    kubectl = Kubectl(namespace)
    body = next(body for body in kubectl.manifests() if body["kind"] == KIND)
    kubectl.apply([body], "--server-side", "--field-manager=argocd-controller")
    namespace.edit(body["metadata"]["name"], publish={"repository": "mallory/support-tools"})
    assert {found["mode"] for found in out_of_sync(namespace.plane.kubeconfig, [body])} == {
        "default",
        "ServerSideApply",
        "ServerSideDiff",
    }

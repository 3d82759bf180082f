"""The operator with exactly the rights that the chart gives it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.rendering import NAMESPACE, render
from kube.kubelet import eventually
from kube.operators import an_operator
from kube.plane import Namespace, Plane
from tunemill_api.constants import LABEL_LEADER
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.ports import free_ports

ROOTS = {
    "ServiceAccount": "/api/v1",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1",
    "Role": "/apis/rbac.authorization.k8s.io/v1",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1",
}


def install(plane: Plane, objects: list[dict[str, Any]]) -> None:
    """Create the chart's accounts and roles."""
    for item in objects:
        namespace = item["metadata"].get("namespace")
        where = f"/namespaces/{namespace}" if namespace else ""
        plane.api.post(f"{ROOTS[item['kind']]}{where}/{item['kind'].lower()}s", item)


def kubeconfig_of(plane: Plane, account: str, folder: Path) -> Path:
    """Return a kubeconfig with a token of the service account."""
    path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token"
    token = plane.api.post(path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    return kubeconfig


@pytest.mark.parametrize("confined", [False, True], ids=["everywhere", "confined"])
def test_the_rights_of_the_chart_are_enough(plane: Plane, namespace: Namespace, tmp_path: Path, confined: bool) -> None:
    """Leader election, progress and a whole run, without one refusal in the log; Secrets cannot be read."""
    if plane.api.find(f"/api/v1/namespaces/{NAMESPACE}") is None:
        plane.namespace(NAMESPACE)
    release = "confined" if confined else "everywhere"
    rendered = render(
        release, watchNamespaces=[namespace.name] if confined else [], rbac={"aggregateClusterRoles": False}
    )
    install(plane, [item for kind in ROOTS for item in rendered.all(kind)])
    account = rendered.pod["spec"]["serviceAccountName"]
    kubeconfig = kubeconfig_of(plane, account, tmp_path)
    container = {"name": "operator", "image": "operator"}
    pod = plane.api.post(
        f"/api/v1/namespaces/{NAMESPACE}/pods",
        {"metadata": {"name": release}, "spec": {"containers": [container]}},
    )
    authority = Authority.ensure(tmp_path / "pki")
    authority.sign("server", user="progress", hosts=["127.0.0.1"])
    (port,) = free_ports(1)
    arguments = [
        f"--lease-name={rendered.flags['--lease-name']}",
        f"--lease-namespace={NAMESPACE}",
        f"--namespaces={namespace.name}" if confined else "--namespaces=",
        f"--progress-url=https://127.0.0.1:{port}",
        f"--progress-port={port}",
        f"--progress-cert={authority.certificate('server')}",
        f"--progress-key={authority.key('server')}",
        f"--progress-ca={authority.certificate('ca')}",
        f"--pod-name={release}",
        f"--pod-namespace={NAMESPACE}",
        "--resync-seconds=2",
    ]
    with an_operator(kubeconfig, tmp_path / "operator.log", *arguments) as operator:
        namespace.apply("allowed")
        namespace.wait_for("allowed", "Succeeded", seconds=60)
        eventually(lambda: "Published" in namespace.events("allowed"), "events may be written")
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
        assert plane.api.get(path)["metadata"]["labels"][LABEL_LEADER] == "true"
        assert operator.stop() == 0
        assert LABEL_LEADER not in plane.api.get(path)["metadata"].get("labels", {})
        assert not operator.said("forbidden"), operator.log.read_text()
        assert not operator.said("warning"), operator.log.read_text()
    review = {
        "spec": {
            "user": f"system:serviceaccount:{NAMESPACE}:{account}",
            "resourceAttributes": {"namespace": namespace.name, "resource": "secrets", "verb": "get"},
        }
    }
    answer = plane.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert not answer["status"]["allowed"]

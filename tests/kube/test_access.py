"""The operator with exactly the permissions of the chart."""

import base64
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from chaos.proxy import Proxy
from chart.rendering import NAMESPACE, render
from kube.kubelet import Runs, Waits, eventually
from kube.operators import an_operator
from kube.plane import PROFILES, Namespace, Plane
from property.builders import a_spec
from tunemill_api import keys
from tunemill_api.constants import LABEL_LEADER
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster.ports import free_ports
from tunemill_operator.engine.stages import Work

ROOTS = {
    "ServiceAccount": "/api/v1",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1",
    "Role": "/apis/rbac.authorization.k8s.io/v1",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1",
    "Secret": "/api/v1",
}


VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
FOR_ADMISSION = ("tunemill.dev", "functioncallfinetunes/finalizers", "update")
"""Required by OwnerReferencesPermissionEnforcement when a Job is created; no request uses it."""


@dataclass
class RecordingProxy(Proxy):
    """Forwards all requests, and records the permission that each needs."""

    used: set[tuple[str, str, str]] = field(default_factory=set)
    """API group, resource and verb, as rules name them."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if needed := permission_for(request.method, request.path, watches="watch" in request.query):
            self.used.add(needed)
        return await super()._handle(request)


def permission_for(method: str, path: str, *, watches: bool) -> tuple[str, str, str] | None:
    """Return the API group, resource and verb of a request; None for discovery, which everyone may use."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    if rest[:1] == ["namespaces"]:
        rest = rest[2:]
    if not rest:
        return None
    resource = "/".join([rest[0], *rest[2:]])
    reads = "get" if len(rest) > 1 else "watch" if watches else "list"
    return group, resource, VERBS.get(method, reads)


def install(plane: Plane, objects: list[dict[str, Any]]) -> None:
    """Create the chart's accounts and roles, and the Secret for the operator's certificate."""
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


def arguments_for(pod: str, lease: str, secret: str) -> list[str]:
    """Return flags like those of the chart, for an operator that runs as this pod."""
    (port,) = free_ports(1)
    return [
        f"--lease-name={lease}",
        f"--lease-namespace={NAMESPACE}",
        f"--progress-url=https://localhost:{port}",
        f"--progress-port={port}",
        f"--progress-secret={secret}",
        f"--pod-name={pod}",
        f"--pod-namespace={NAMESPACE}",
        "--resync-seconds=2",
    ]


@pytest.mark.parametrize("confined", [False, True], ids=["everywhere", "confined"])
def test_the_permissions_of_the_chart_are_sufficient(
    plane: Plane, namespace: Namespace, tmp_path: Path, confined: bool
) -> None:
    """Leader election, progress and a whole run without a forbidden request in the log; Secrets cannot be read."""
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
    arguments = [
        *arguments_for(release, rendered.flags["--lease-name"], rendered.flags["--progress-secret"]),
        f"--namespaces={namespace.name}" if confined else "--namespaces=",
    ]
    with an_operator(kubeconfig, tmp_path / "operator.log", *arguments) as operator:
        namespace.apply("allowed", compute={"nodes": 2})
        namespace.wait_for("allowed", "Succeeded")
        eventually(lambda: "Published" in namespace.events("allowed"), "events may be written")
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
        assert plane.api.get(path)["metadata"]["labels"][LABEL_LEADER] == "true"
        assert operator.stop() == 0
        assert LABEL_LEADER not in plane.api.get(path)["metadata"].get("labels", {})
        assert not operator.logged("forbidden"), operator.log.read_text()
        assert not operator.logged("warning"), operator.log.read_text()
    for where in (namespace.name, NAMESPACE):
        review = {
            "spec": {
                "user": f"system:serviceaccount:{NAMESPACE}:{account}",
                "resourceAttributes": {"namespace": where, "resource": "secrets", "verb": "get", "name": "s3"},
            }
        }
        answer = plane.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        assert not answer["status"]["allowed"]


def test_every_permission_of_the_chart_is_used(plane: Plane, namespace: Namespace, tmp_path: Path) -> None:
    """The requests of all kinds of work need all permissions of the chart: none can be removed."""
    rendered = render("recorded")
    granted = {
        (group, resource, verb)
        for _, _, rule in rendered.rules_of_operator()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    proxy = RecordingProxy(plane.kubeconfig, tmp_path / "kubeconfig")
    proxy.start()
    home = plane.namespace("recorded")
    pod = home.make("pods", "op", spec={"containers": [{"name": "op", "image": "op"}]})
    home.make("secrets", "progress")
    arguments = arguments_for(pod["metadata"]["name"], "recorded", "progress")
    arguments += ["--lease-namespace=recorded", "--pod-namespace=recorded", f"--namespaces={namespace.name}"]
    try:
        with an_operator(proxy.kubeconfig, tmp_path / "operator.log", *arguments) as operator:
            plane.profile("without-namespaces", namespaces=[])
            plane.kubelet.behave("paused", Stage.TRAIN, Runs())
            namespace.apply("paused", compute={"nodes": 2})
            namespace.wait_for("paused", "Training")
            namespace.edit("paused", suspend=True)
            namespace.wait_for("paused", "Suspended")
            plane.kubelet.behave("silent", Stage.PREPARE, Waits())
            namespace.apply("silent")
            namespace.apply("queued", queue={"name": "team-a"})
            a_foreign_job(namespace, "taken")
            namespace.apply("taken")
            namespace.wait_for("taken", "Failed")
            held = plane.api.get(home.path("secrets", "progress"))["data"]
            report_with_a_bad_token(arguments, base64.b64decode(held["ca.crt"]).decode())
            rest = granted - {FOR_ADMISSION}
            eventually(lambda: rest <= proxy.used, "every permission is used")
            assert operator.stop() == 0
    except AssertionError as error:
        raise AssertionError(f"{error}; never used: {sorted(granted - {FOR_ADMISSION} - proxy.used)}") from None
    finally:
        proxy.stop()
        plane.api.delete(f"{PROFILES}/without-namespaces")
    assert proxy.used == granted - {FOR_ADMISSION}


def a_foreign_job(namespace: Namespace, name: str) -> None:
    """Create a Job with the name of the first Job of an object."""
    key = keys.prepare_inputs(FineTuneSpec.model_validate(a_spec()))
    spec = {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other"}]}
    namespace.make(
        "jobs",
        Work("prepare", (Stage.PREPARE,), key).job_name(name),
        spec={"suspend": True, "template": {"spec": spec}},
    )


def report_with_a_bad_token(arguments: list[str], authority: str) -> None:
    """Post a progress report that needs a token review."""
    flags = dict(argument.split("=", 1) for argument in arguments)
    path = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team-a/trainjobs/x/status"
    request = urllib.request.Request(
        f"{flags['--progress-url']}{path}", data=b"{}", headers={"Authorization": "Bearer forged"}, method="POST"
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=10, context=ssl.create_default_context(cadata=authority))

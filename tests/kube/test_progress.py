"""Progress of a stage is written to the status, and only the stage's own pod can report it."""

import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kube.kubelet import Runs, eventually
from kube.operators import Operator, an_operator, start
from kube.plane import Namespace, Plane
from tunemill_api.constants import ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN, ENV_PROGRESS_URL, PROGRESS_AUDIENCE
from tunemill_api.stage_report import Stage
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.ports import free_ports

WRITE_SECONDS = 2
"""Least time between two writes of an object's progress, set lower than the default to keep the tests short."""
HALF = {"progressPercentage": 45, "estimatedRemainingSeconds": 190, "metrics": [{"name": "loss", "value": "0.2347"}]}


@dataclass(frozen=True)
class Endpoint:
    """The progress endpoint as seen by a pod."""

    operator: Operator
    url: str
    authority: Authority

    def post(self, namespace: str, name: str, token: str, status: Any = None, body: bytes | None = None) -> int:
        """Post a report; return the HTTP status."""
        data = json.dumps({"trainerStatus": HALF if status is None else status}).encode() if body is None else body
        path = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{name}/status"
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method="POST")
        trust = ssl.create_default_context(cafile=str(self.authority.certificate("ca")))
        try:
            with urllib.request.urlopen(request, timeout=10, context=trust) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def endpoint(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An operator with a progress endpoint."""
    with an_endpoint(plane, tmp_path_factory.mktemp("progress")) as endpoint:
        yield endpoint


@contextmanager
def an_endpoint(plane: Plane, folder: Path) -> Iterator[Endpoint]:
    """Run an operator with a progress endpoint, with its files in a folder, until the block ends."""
    authority = Authority.ensure(folder / "pki")
    authority.sign("server", user="progress", hosts=["127.0.0.1"])
    (port,) = free_ports(1)
    with an_operator(plane.kubeconfig, folder / "operator.log", *arguments_for(port, authority)) as operator:
        yield Endpoint(operator, f"https://127.0.0.1:{port}", authority)


def arguments_for(port: int, authority: Authority) -> list[str]:
    """Return the flags that enable the endpoint."""
    return [
        "--no-leader-election",
        f"--progress-url=https://127.0.0.1:{port}",
        f"--progress-port={port}",
        f"--progress-write-seconds={WRITE_SECONDS}",
        f"--progress-cert={authority.certificate('server')}",
        f"--progress-key={authority.key('server')}",
        f"--progress-ca={authority.certificate('ca')}",
    ]


def training_pod(plane: Plane, namespace: Namespace, name: str, **parts: Any) -> dict[str, Any]:
    """Bring an object to its training; return the pod."""
    plane.kubelet.behave(name, Stage.TRAIN, Runs())
    namespace.apply(name, **parts)
    namespace.wait_for(name, "Training")
    return next(pod for pod in namespace.pods(name) if pod["status"]["phase"] == "Running")


def token_of(namespace: Namespace, pod: dict[str, Any] | None, audience: str = PROGRESS_AUDIENCE) -> str:
    """Return a service account's token bound to the pod, as mounted by the kubelet."""
    spec: dict[str, Any] = {"audiences": [audience], "expirationSeconds": 600}
    if pod:
        metadata = pod["metadata"]
        spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    path = f"{namespace.path('serviceaccounts', 'default')}/token"
    token: str = namespace.plane.api.post(path, {"spec": spec})["status"]["token"]
    return token


def test_progress_reports_update_the_status(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """Values in the status, and two printer columns. They are removed when the stage ends."""
    pod = training_pod(plane, namespace, "lively")
    assert endpoint.post(namespace.name, "lively", token_of(namespace, pod)) == 200
    status = eventually(
        lambda: (found := namespace.status("lively")).get("trainerStatus") and found, "the report is in the status"
    )
    assert status["trainerStatus"]["progressPercentage"] == 45
    assert status["trainerStatus"]["metrics"] == [{"name": "loss", "value": "0.2347"}]
    assert (status["progress"], status["eta"]) == ("45%", "3m10s")
    plane.kubelet.behaviours.pop(("lively", "train"))
    assert "trainerStatus" not in namespace.wait_for("lively", "Succeeded")


def test_a_stage_without_progress_is_stopped_and_restarted(
    endpoint: Endpoint, plane: Plane, namespace: Namespace
) -> None:
    """No report arrives for spec.stallTimeout; the pod has time to save a checkpoint."""
    pod = training_pod(plane, namespace, "frozen", stallTimeout="3s")
    assert endpoint.post(namespace.name, "frozen", token_of(namespace, pod)) == 200
    eventually(lambda: pod["metadata"]["name"] in plane.kubelet.interrupted, "the pod is stopped")
    plane.kubelet.behaviours.pop(("frozen", "train"))
    status = namespace.wait_for("frozen", "Succeeded")
    entry = next(item for item in status["stages"] if item["name"] == "train")
    assert (entry["stalls"], entry["attempts"]) == (1, 2)
    eventually(lambda: "NoProgress" in namespace.events("frozen"), "an event reports it")


def test_pods_get_the_progress_address(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """In the variables of Kubeflow's protocol, with a token for this audience only."""
    pod = training_pod(plane, namespace, "informed")
    env = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
    assert env[ENV_PROGRESS_URL].startswith(endpoint.url)
    assert {ENV_PROGRESS_CA, ENV_PROGRESS_TOKEN} <= env.keys()
    (progress,) = [item for item in pod["spec"]["volumes"] if item["name"] == "progress"]
    sources = progress["projected"]["sources"]
    assert [item["serviceAccountToken"]["audience"] for item in sources if "serviceAccountToken" in item] == [
        PROGRESS_AUDIENCE
    ]
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert (
        pod["metadata"]["annotations"]["tunemill.dev/progress-ca"] == endpoint.authority.certificate("ca").read_text()
    )


def test_only_the_pod_of_the_stage_may_report(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """No token, a forged one, another audience, no pod, or the pod of another object: all are refused."""
    pod, other = training_pod(plane, namespace, "mine"), training_pod(plane, namespace, "theirs")
    assert endpoint.post(namespace.name, "mine", "") == 401
    assert endpoint.post(namespace.name, "mine", "forged") == 401
    assert endpoint.post(namespace.name, "mine", token_of(namespace, pod, "https://kubernetes.default.svc")) == 401
    assert endpoint.post(namespace.name, "mine", token_of(namespace, None)) == 401
    assert endpoint.post(namespace.name, "mine", token_of(namespace, other)) == 403
    assert endpoint.post("kube-system", "mine", token_of(namespace, pod)) == 403
    assert "trainerStatus" not in namespace.status("mine")


def test_a_report_of_a_terminated_pod_is_refused(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """Its token may still be valid."""
    pod = training_pod(plane, namespace, "late")
    token = token_of(namespace, pod)
    plane.kubelet.behaviours.pop(("late", "train"))
    namespace.wait_for("late", "Succeeded")
    assert endpoint.post(namespace.name, "late", token) in {401, 403}


def test_an_invalid_report_is_rejected(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """Not JSON, values out of range, or too large."""
    token = token_of(namespace, training_pod(plane, namespace, "odd"))
    assert endpoint.post(namespace.name, "odd", token, body=b"45 %") == 400
    assert endpoint.post(namespace.name, "odd", token, {"progressPercentage": 450}) == 400
    assert endpoint.post(namespace.name, "odd", token, body=b" " * 20_000) == 413


def test_status_writes_of_progress_are_rate_limited(endpoint: Endpoint, plane: Plane, namespace: Namespace) -> None:
    """Twenty reports at once cost one or two writes, then one per interval, and the last report is kept."""
    pod = training_pod(plane, namespace, "chatty")
    token = token_of(namespace, pod)
    before = int(namespace.get("chatty")["metadata"]["resourceVersion"])
    versions: set[int] = set()
    began = time.monotonic()
    for percent in range(1, 21):
        assert endpoint.post(namespace.name, "chatty", token, {"progressPercentage": percent}) == 200
        versions.add(int(namespace.get("chatty")["metadata"]["resourceVersion"]))
    eventually(lambda: namespace.status("chatty").get("progress") == "20%", "the last report is written")
    assert len(versions - {before}) <= 3 + (time.monotonic() - began) / WRITE_SECONDS


def test_a_port_in_use_is_reported_in_one_sentence(endpoint: Endpoint, plane: Plane, tmp_path: Path) -> None:
    """The endpoint's port has to be free."""
    port = int(endpoint.url.rpartition(":")[2])
    second = start(plane.kubeconfig, tmp_path / "log", *arguments_for(port, endpoint.authority))
    assert second.process.wait(180) == 64
    assert f"cannot listen on port {port}" in second.log.read_text().splitlines()[-1]


def test_a_renewed_certificate_is_served_without_a_restart(endpoint: Endpoint, tmp_path: Path) -> None:
    """The files are checked every few seconds."""
    before = served_certificate(endpoint)
    renewed = Authority(tmp_path)
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).write_bytes((endpoint.authority.folder / name).read_bytes())
    renewed.sign("server", user="progress", hosts=["127.0.0.1"])
    endpoint.authority.key("server").write_bytes(renewed.key("server").read_bytes())
    endpoint.authority.certificate("server").write_bytes(renewed.certificate("server").read_bytes())
    eventually(lambda: served_certificate(endpoint) != before, "the new certificate is served")


def served_certificate(endpoint: Endpoint) -> str:
    """Return the certificate of the endpoint."""
    host, _, port = endpoint.url.removeprefix("https://").partition(":")
    return ssl.get_server_certificate((host, int(port)))

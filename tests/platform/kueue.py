"""The released Kueue (CRDs, webhooks, controller) with a control plane, and its queues."""

import base64
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kube import queues
from kube.api import Api, ApiError
from kube.kubelet import eventually
from kube.plane import CRD_PATH
from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.ports import free_ports

GROUP = f"/apis/{queues.GROUP}/{queues.VERSION}"
SYSTEM = "kueue-system"
SERVICE = "kueue-webhook-service"
SECRET = "kueue-webhook-server-cert"
GPU = "nvidia.com/gpu"
SERVED = {queues.GROUP, "batch"}
"""The API groups whose webhooks are installed; those of kinds that are not in this cluster are left out."""
Json = dict[str, Any]


@contextmanager
def a_kueue(api: Api, kubeconfig: Path, folder: Path) -> Iterator[None]:
    """Run Kueue until the block ends, with its files in an empty folder."""
    program = binaries.ensure([binaries.KUEUE])[binaries.KUEUE.name] / "kueue"
    source = binaries.source_of(binaries.KUEUE, "sigs.k8s.io/kueue") / "config" / "components"
    webhooks, health = free_ports(2)
    certificate = _certificate(folder)
    _install(api, source, folder, {"url": f"https://127.0.0.1:{webhooks}", "caBundle": certificate})
    configuration = folder / "kueue.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(source, folder, webhooks, health)))
    log = folder / "kueue.log"
    # The server for kubectl's plugin would take a fixed port.
    arguments = [str(program), f"--config={configuration}", "--feature-gates=VisibilityOnDemand=false"]
    with log.open("wb") as output:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
    try:
        _wait_until_it_answers(process, f"http://127.0.0.1:{health}/readyz", log)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


@dataclass(frozen=True)
class Queues:
    """The queues of a cluster."""

    api: Api

    def open(self, namespace: str, name: str, gpus: int, **cluster_queue: Any) -> None:
        """Create a LocalQueue, a ClusterQueue and a flavor with the same name and this number of GPUs."""
        self.api.post(f"{GROUP}/resourceflavors", queues.resource_flavor(name))
        self.api.post(f"{GROUP}/clusterqueues", queues.cluster_queue(name, _quotas(gpus), **cluster_queue))
        self.api.post(f"{GROUP}/namespaces/{namespace}/localqueues", queues.local_queue(name, namespace, of=name))

    def resize(self, name: str, gpus: int) -> None:
        """Change the quota of a ClusterQueue."""
        self.change(name, resourceGroups=queues.resource_groups(name, _quotas(gpus)))

    def rank(self, name: str, value: int) -> None:
        """Create a WorkloadPriorityClass."""
        self.api.post(f"{GROUP}/workloadpriorityclasses", queues.priority_class(name, value))

    def change(self, name: str, **spec: Any) -> None:
        """Change a ClusterQueue."""
        self.api.patch(f"{GROUP}/clusterqueues/{name}", {"spec": spec})

    def workloads(self, namespace: str) -> list[Json]:
        """Return the Workloads of a namespace."""
        items: list[Json] = self.api.get(f"{GROUP}/namespaces/{namespace}/workloads")["items"]
        return items

    def activate(self, namespace: str, name: str, *, active: bool) -> None:
        """Activate or deactivate a Workload, as an administrator does."""
        self.api.patch(f"{GROUP}/namespaces/{namespace}/workloads/{name}", {"spec": {"active": active}})


def _quotas(gpus: int) -> dict[str, int | str]:
    """Return quotas of which only that of GPUs is scarce. Pods also request a CPU and memory."""
    return {GPU: gpus, "cpu": 1000, "memory": "10Ti"}


def _certificate(folder: Path) -> str:
    """Make one certificate that is at once Kueue's authority and that of its server; return it as a CA bundle.

    Kueue is shipped to make its own for the name of a Service. Here the API server reaches it at another address.
    """
    names = ["DNS:kueue-ca", f"DNS:{SERVICE}.{SYSTEM}.svc", "IP:127.0.0.1"]
    key, certificate = str(folder / "tls.key"), folder / "tls.crt"
    subject = ["-subj", "/CN=kueue", "-addext", f"subjectAltName={','.join(names)}", "-days", "365"]
    # Kueue reads keys in their older form only, and replaces a certificate that expires within three months.
    for argv in (
        ["openssl", "genrsa", "-traditional", "-out", key, "2048"],
        ["openssl", "req", "-x509", "-key", key, *subject, "-out", str(certificate)],
    ):
        subprocess.run(argv, check=True, capture_output=True)
    return base64.b64encode(certificate.read_bytes()).decode()


def _install(api: Api, source: Path, folder: Path, client: Json) -> None:
    """Install CRDs, webhooks and the Secret that Kueue keeps its certificate in; `client` says where it is reached."""
    api.post("/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
    key = base64.b64encode((folder / "tls.key").read_bytes()).decode()
    data = {"ca.crt": client["caBundle"], "ca.key": key, "tls.crt": client["caBundle"], "tls.key": key}
    api.post(f"/api/v1/namespaces/{SYSTEM}/secrets", {"metadata": {"name": SECRET}, "data": data})
    for path in sorted((source / "crd" / "bases").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        if len(crd["spec"]["versions"]) > 1:
            convert = {"clientConfig": _reached_at(client, "/convert"), "conversionReviewVersions": ["v1"]}
            crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": convert}
        api.post(CRD_PATH, crd)
    for plural in ("workloads", "clusterqueues", "resourceflavors", "workloadpriorityclasses"):
        eventually(lambda plural=plural: _is_served(api, plural), f"{plural} are served")
    for manifest in yaml.safe_load_all((source / "webhook" / "manifests.yaml").read_text()):
        webhooks = [each for each in manifest["webhooks"] if set(each["rules"][0]["apiGroups"]) <= SERVED]
        for webhook in webhooks:
            webhook["clientConfig"] = _reached_at(client, webhook["clientConfig"]["service"]["path"])
        body = {**manifest, "metadata": {"name": f"kueue-{manifest['metadata']['name']}"}, "webhooks": webhooks}
        api.post(f"/apis/admissionregistration.k8s.io/v1/{manifest['kind'].lower()}s", body)


def _is_served(api: Api, plural: str) -> bool:
    try:
        return api.find(f"{GROUP}/{plural}?limit=1") is not None
    except ApiError:  # served, and what converts between its versions does not run yet
        return True


def _reached_at(client: Json, path: str) -> Json:
    return {**client, "url": f"{client['url']}{path}"}


def _configuration(source: Path, folder: Path, webhooks: int, health: int) -> Json:
    """Return the released configuration with other addresses, and with these kinds of Jobs."""
    shipped: Json = yaml.safe_load((source / "manager" / "controller_manager_config.yaml").read_text())
    return shipped | {
        "namespace": SYSTEM,
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"host": "127.0.0.1", "port": webhooks, "certDir": str(folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": True, "webhookServiceName": SERVICE, "webhookSecretName": SECRET},
        "integrations": {"frameworks": ["batch/job"]},
    }


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        eventually(answers, "Kueue is ready", seconds=60)
    except AssertionError as error:
        raise AssertionError(f"{error}; it said:\n{log.read_text()[-3000:]}") from None

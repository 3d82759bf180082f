"""The operators to compare, each as it is shipped: their requirements in the cluster, and how to start them."""

import asyncio
import base64
import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from tunemill_api.constants import API_VERSION, GROUP, PLURAL

from tunemill_dev.bench.operator.api import Api, Json
from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.ports import free_ports
from tunemill_dev.testbed import REPOSITORY_ROOT, sample

NAMESPACE = "default"
START_SECONDS = 60.0
_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass
class Running:
    """An operator's process."""

    process: subprocess.Popen[bytes]
    log: Path

    def cpu_seconds(self) -> float:
        """User and system time in seconds."""
        return _cpu_seconds(Path(f"/proc/{self.process.pid}"))

    def memory_mb(self, *, peak: bool = False) -> float:
        """Current or highest resident memory."""
        field_name = "VmHWM" if peak else "VmRSS"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field_name))
        return int(line.split()[1]) / 1024

    async def stop(self) -> None:
        """Stop the process like a Deployment does, and wait."""
        self.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 60)


def api_server_cpu_seconds(folder: Path) -> float:
    """User and system time of the API server with its files in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            program, *arguments = process.joinpath("cmdline").read_text().split("\0")
            if program.endswith("kube-apiserver") and any(str(folder) in argument for argument in arguments):
                return _cpu_seconds(process)
    raise RuntimeError(f"no API server runs with files in {folder}")


def _cpu_seconds(process: Path) -> float:
    # The name in brackets may contain spaces; utime and stime are the 14th and 15th field.
    fields = process.joinpath("stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Contender(ABC):
    """One operator, with the kind that it reconciles and the kind of the children that it creates."""

    name: str
    objects: str
    """Path of the collection that users write."""
    children: str
    """Path of the collection that the operator writes."""

    @abstractmethod
    async def install(self, api: Api) -> None:
        """Create the objects that the operator needs before it starts."""

    @abstractmethod
    async def start(self, api: Api, kubeconfig: Path, folder: Path) -> Running:
        """Start the operator, and return when it is ready."""

    @abstractmethod
    def body(self, name: str) -> Json:
        """Return an object for the operator to reconcile."""


@dataclass
class Ours(Contender):
    """Tunemill's operator with leader election: a FunctionCallFineTune becomes a Job."""

    probe: Path | None = None
    """The file for the operator's measurements of itself. None runs it as it is shipped."""
    profile: bool = False
    """Whether to profile it as well."""

    name = "ours"
    objects = f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}"
    children = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"

    async def install(self, api: Api) -> None:
        """Install the CRD."""
        crd = yaml.safe_load((REPOSITORY_ROOT / "crds" / f"{GROUP}_{PLURAL}.yaml").read_text())
        await api.request("POST", _CRDS, crd)
        await api.served(self.objects)

    async def start(self, api: Api, kubeconfig: Path, folder: Path) -> Running:  # noqa: ARG002 - nothing is left to install
        """Start it like its chart does, except for the metrics address."""
        program = ["tunemill_operator"]
        if self.probe:
            options = ["--profile"] if self.profile else []
            program = ["tunemill_dev.bench.operator.probe", *options, str(self.probe)]
        arguments = [sys.executable, "-m", *program, "run", f"--kubeconfig={kubeconfig}"]
        arguments += ["--trainer-image=registry.example.com/trainer:1", "--http-host=127.0.0.1", "--http-port=0"]
        running = started([*arguments, f"--lease-namespace={NAMESPACE}"], folder / "ours.log", {})
        await until(running, lambda: b"serving" in running.log.read_bytes())
        return running

    def body(self, name: str) -> Json:
        """Return the smallest manifest."""
        manifest = sample("smallest")
        return {**manifest, "metadata": {"name": name, "namespace": NAMESPACE}}


@dataclass
class Kubeflow(Contender):
    """Kubeflow Trainer with its webhooks and leader election: a TrainJob becomes a JobSet.

    The controller of JobSet does not run, which is an advantage for Kubeflow Trainer.
    """

    name: str
    client: Json = field(default_factory=dict)
    """Its `clientConnection`. Empty: the shipped setting."""
    _port: int = 0

    objects = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
    children = f"/apis/jobset.x-k8s.io/v1alpha2/namespaces/{NAMESPACE}/jobsets"

    async def install(self, api: Api) -> None:
        """Install its CRDs, and those of JobSet."""
        manifests = _module("github.com/kubeflow/trainer/v2") / "manifests" / "base"
        jobset = _module("sigs.k8s.io/jobset") / "config" / "components" / "crd" / "bases"
        for path in [*(manifests / "crds").glob("trainer*.yaml"), *jobset.glob("*jobsets.yaml")]:
            for crd in yaml.safe_load_all(path.read_text()):
                await api.request("POST", _CRDS, crd)
        for collection in (self.objects, self.children):
            await api.served(collection)

    async def start(self, api: Api, kubeconfig: Path, folder: Path) -> Running:
        """Start it with its shipped configuration, with other ports, certificates and namespace of the Lease."""
        again = self._port != 0
        health, self._port = free_ports(2) if not again else (free_ports(1)[0], self._port)
        certificates = folder / "k8s-webhook-server" / "serving-certs"
        if not again:
            certificates.mkdir(parents=True)
            authority = Authority.ensure(folder / "pki")
            authority.sign("tls", user="webhook", hosts=("127.0.0.1",))
            (certificates / "tls.crt").write_bytes(authority.certificate("tls").read_bytes())
            (certificates / "tls.key").write_bytes(authority.key("tls").read_bytes())
        configuration = folder / f"{self.name}.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration(health)))
        program = binaries.ensure([binaries.KUBEFLOW])[binaries.KUBEFLOW.name] / "trainer-controller-manager"
        # It reads the certificates of its webhooks from the folder for temporary files.
        environment = {"KUBECONFIG": str(kubeconfig), "TMPDIR": str(folder)}
        arguments = [str(program), f"--config={configuration}", "--zap-log-level=2"]
        running = started(arguments, folder / f"{self.name}.log", environment)
        await until(running, lambda: _answers(f"http://127.0.0.1:{health}/readyz"))
        if not again:
            bundle = base64.b64encode((folder / "pki" / "ca.crt").read_bytes()).decode()
            await self._install_webhooks(api, bundle)
            await self._install_runtime(api)
        return running

    def body(self, name: str) -> Json:
        """Return the smallest TrainJob."""
        spec = {"runtimeRef": {"name": "torch-distributed"}}
        metadata = {"name": name, "namespace": NAMESPACE}
        return {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": spec}

    def _configuration(self, health: int) -> Json:
        base = _module("github.com/kubeflow/trainer/v2") / "manifests" / "base" / "manager"
        shipped: Json = yaml.safe_load((base / "controller_manager_config.yaml").read_text())
        return shipped | {
            "health": shipped["health"] | {"healthProbeBindAddress": f"127.0.0.1:{health}"},
            "metrics": {"bindAddress": "0", "secureServing": False},
            "webhook": {"port": self._port, "host": "127.0.0.1"},
            "leaderElection": shipped["leaderElection"] | {"resourceNamespace": NAMESPACE},
            "certManagement": shipped["certManagement"] | {"enable": False},
            "clientConnection": shipped["clientConnection"] | self.client,
        }

    async def _install_webhooks(self, api: Api, bundle: str) -> None:
        manifests = _module("github.com/kubeflow/trainer/v2") / "manifests" / "base" / "webhook" / "manifests.yaml"
        for manifest in yaml.safe_load_all(manifests.read_text()):
            for webhook in manifest["webhooks"]:
                url = f"https://127.0.0.1:{self._port}{webhook['clientConfig']['service']['path']}"
                webhook["clientConfig"] = {"url": url, "caBundle": bundle}
            plural = f"{manifest['kind'].lower()}s"
            await api.request("POST", f"/apis/admissionregistration.k8s.io/v1/{plural}", manifest)

    async def _install_runtime(self, api: Api) -> None:
        folder = _module("github.com/kubeflow/trainer/v2") / "manifests" / "base" / "runtimes"
        runtime = yaml.safe_load((folder / "torch_distributed.yaml").read_text())
        await api.request("POST", "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes", runtime)


def started(arguments: list[str], log: Path, environment: dict[str, str]) -> Running:
    """Start a program."""
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, env={**os.environ, **environment})
    return Running(process, log)


async def until(running: Running, ready: Callable[[], bool]) -> None:
    """Wait until it is ready. RuntimeError with the end of its log if it exits before."""
    async with asyncio.timeout(START_SECONDS):
        while not ready():
            if running.process.poll() is not None:
                raise RuntimeError(f"{running.process.args!r} has ended: {running.log.read_text()[-2000:]}")
            await asyncio.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _module(name: str) -> Path:
    """Return the source folder of a Go module of the benchmark."""
    return binaries.source_of(binaries.KUBEFLOW, name)

"""etcd, API server and controllers without a node, for tests: no root, free loopback ports, stopped on exit."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.components import CLIENTS, ControlPlane, sign_control_plane
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.plan import Plan
from tunemill_dev.cluster.ports import free_ports
from tunemill_dev.cluster.processes import replace_file, succeeds, wait_until

_READY_SECONDS = 60
_TRIES = 3


@dataclass(frozen=True)
class RunningControlPlane:
    """A Kubernetes API without nodes: pods are created but never run."""

    kubeconfig: Path
    kubectl: Path
    server: str
    """The API server's URL."""
    logs: Path


@contextmanager
def control_plane(path: Path, *, controllers: bool = True) -> Iterator[RunningControlPlane]:
    """Run a control plane whose files lie in `path` (an empty folder) until the block ends.

    Without `controllers` it is etcd and the API server alone: a Job makes no pod, and nothing is collected.

    It also ends when this process dies, however it dies. Raises ClusterError, with the last lines of the right log,
    when it does not come up.
    """
    programs = binaries.ensure([binaries.KUBERNETES])[binaries.KUBERNETES.name]
    for attempt in range(_TRIES):
        folder = path / str(attempt)
        layout = _prepare(folder, programs, controllers=controllers)
        with _running(folder / "plan.json", folder / "logs"):
            running = RunningControlPlane(folder / "kubeconfig", programs / "kubectl", layout.server, folder / "logs")
            # Another process may take a free port first: then retry with other ports.
            if _ready(running, controllers=controllers):
                yield running
                return
            if attempt == _TRIES - 1:
                log = running.logs / "kube-apiserver.log"
                raise ClusterError.with_log(f"The control plane was not ready within {_READY_SECONDS} s.", log)


def _prepare(folder: Path, programs: Path, *, controllers: bool) -> ControlPlane:
    port, etcd_port, peer_port, controllers_port = free_ports(4)
    layout = ControlPlane(
        programs=programs,
        pki=Authority.ensure(folder / "pki"),
        config=folder,
        address="127.0.0.1",
        port=port,
        etcd_folder=folder / "etcd",
        etcd_port=etcd_port,
        etcd_peer_port=peer_port,
        services="10.96.0.0/20",
        durable=False,
    )
    sign_control_plane(layout.pki, ("127.0.0.1", "localhost"))
    for name in CLIENTS:
        replace_file(folder / f"{name}.kubeconfig", layout.pki.kubeconfig(name, layout.server))
    (folder / "admin.kubeconfig").rename(folder / "kubeconfig")
    # A loopback address cannot be an endpoint of the `kubernetes` Service, and nothing here needs that Service.
    components = [layout.etcd(), layout.api_server(endpoint_reconciler_type="none")]
    if controllers:
        components.append(layout.controller_manager(secure_port=str(controllers_port)))
    plan = Plan(tuple(components), logs=str(folder / "logs"), status=str(folder / "components.json"), lifeline=True)
    plan.write(folder / "plan.json")
    return layout


@contextmanager
def _running(plan: Path, logs: Path) -> Iterator[None]:
    """Run a plan under a supervisor that ends with this block, or with this process."""
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "tunemill_dev.cluster.supervisor", str(plan)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with supervisor:
        assert supervisor.stdin
        assert supervisor.stdout
        try:
            supervisor.stdout.readline()
            supervisor.stdin.write("go\n")
            supervisor.stdin.flush()
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.close()
            try:
                supervisor.wait(timeout=10)
            except subprocess.TimeoutExpired:
                supervisor.send_signal(signal.SIGKILL)
    if supervisor.returncode:
        raise ClusterError.with_log("The control plane's supervisor failed.", logs / "supervisor.log")


def _ready(running: RunningControlPlane, *, controllers: bool) -> bool:
    kubectl: list[str | Path] = [running.kubectl, "--kubeconfig", running.kubeconfig]
    ready = wait_until(lambda: succeeds([*kubectl, "get", "--raw=/readyz"]), seconds=_READY_SECONDS)
    # A namespace rejects pods without its default service account, which controllers create.
    needed = "serviceaccount" if controllers else "namespace"
    return ready and wait_until(lambda: succeeds([*kubectl, "get", needed, "default"]), seconds=_READY_SECONDS)

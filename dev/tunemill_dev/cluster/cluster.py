"""A running local cluster: its addresses, files and operations."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster import addons, binaries, tree
from tunemill_dev.cluster.addresses import Addresses
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.home import ClusterFolder, locked
from tunemill_dev.cluster.images import ImageStore
from tunemill_dev.cluster.processes import run

DEFAULT_NAME = "tunemill"


@dataclass(frozen=True)
class S3Access:
    """The S3 server of the cluster."""

    host_url: str
    cluster_url: str
    access_key: str
    secret_key: str


@dataclass(frozen=True)
class HubAccess:
    """The Hub server of the cluster, and a token of each kind for its user."""

    host_url: str
    cluster_url: str
    user: str
    organisation: str
    admin_token: str
    write_token: str
    read_token: str
    scoped_token: str


@dataclass(frozen=True)
class Cluster:
    """A running cluster. Its node, pods and Services are reachable from the host under their own addresses."""

    name: str
    state: Path
    kubeconfig: Path
    kubectl: Path
    server: str
    """The API server's URL."""
    host_ip: str
    """The host's address as pods see it."""
    node_ip: str
    registry: str
    """Host and port from which the node pulls images over plain HTTP, if a registry on this machine listens there."""
    image_store: ImageStore

    def run_kubectl(self, *argv: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return its output. ClusterError if it fails."""
        return run([self.kubectl, "--kubeconfig", self.kubeconfig, *argv], stdin=stdin)

    def build_image(
        self,
        name: str,
        context: Path,
        dockerfile: Path,
        *,
        build_args: Mapping[str, str] | None = None,
        secrets: Mapping[str, Path] | None = None,
    ) -> str:
        """Build an image for this cluster's pods and return its reference; BASE_IMAGE is set when not given."""
        with locked(self.state / "images.lock"):
            given = {"BASE_IMAGE": self.image_store.base(), **(build_args or {})}
            return self.image_store.build(name, context, dockerfile, build_args=given, secrets=secrets)

    @property
    def volumes(self) -> Path:
        """The folder for persistent volumes of the type `local`. It is deleted with the cluster."""
        return ClusterFolder.of(self.name).volumes

    def prune(self) -> None:
        """Free disk space: keep only the newest image of each name, and no build cache."""
        with locked(self.state / "images.lock"):
            self.image_store.prune()

    @property
    def s3(self) -> S3Access:
        """How to reach the S3 server."""
        credentials = addons.Credentials.ensure(self.state / "credentials.json")
        host_url, cluster_url = self._urls("s3", 7070)
        return S3Access(host_url, cluster_url, credentials.s3_access_key, credentials.s3_secret_key)

    @property
    def hub(self) -> HubAccess:
        """How to reach the Hub server."""
        credentials = addons.Credentials.ensure(self.state / "credentials.json")
        host_url, cluster_url = self._urls("hub", 8080)
        return HubAccess(
            host_url=host_url,
            cluster_url=cluster_url,
            user=addons.HUB_USER,
            organisation=addons.HUB_ORGANISATION,
            admin_token=credentials.hub_admin_token,
            write_token=credentials.hub_write_token,
            read_token=credentials.hub_read_token,
            scoped_token=credentials.hub_scoped_token,
        )

    def _urls(self, service: str, port: int) -> tuple[str, str]:
        template = "-o=jsonpath={.spec.clusterIP}"
        address = self.run_kubectl("get", "service", service, "-n", addons.NAMESPACE, template)
        return f"http://{address}:{port}", f"http://{service}.{addons.NAMESPACE}:{port}"


def running(name: str = DEFAULT_NAME) -> Cluster:
    """Return the cluster with this name. ClusterError if it does not run."""
    folder = ClusterFolder.of(name)
    if not tree.first_process(folder):
        raise ClusterError(f"The cluster {name!r} is not running: start it with `up --name {name}`.")
    return open_cluster(folder, binaries.ensure(binaries.ALL))


def open_cluster(folder: ClusterFolder, programs: Mapping[str, Path]) -> Cluster:
    """Return the running cluster of a folder. ClusterError if its processes have ended."""
    addresses, init = Addresses.read(folder.network), tree.first_process(folder)
    if not addresses or not init:
        raise ClusterError.with_log(f"The cluster {folder.name!r} has stopped.", folder.logs / "supervisor.log")
    kubectl = programs["kubernetes"] / "kubectl"
    store = ImageStore(
        run_folder=Path(f"/proc/{init.pid}/root/run"),
        programs=programs,
        logs=folder.logs,
        record=folder.images / "tags.json",
        workloads=functools.partial(_workloads, kubectl, folder.kubeconfig),
    )
    return Cluster(
        name=folder.name,
        state=folder.root,
        kubeconfig=folder.kubeconfig,
        kubectl=kubectl,
        server=f"https://{addresses.node}:6443",
        host_ip=addresses.host,
        node_ip=addresses.node,
        registry=addresses.registry,
        image_store=store,
    )


def _workloads(kubectl: Path, kubeconfig: Path) -> str:
    """Return the objects that may still start a pod, without finished Jobs and the history of Deployments."""
    listed: list[str | Path] = [kubectl, "--kubeconfig", kubeconfig, "get", "--all-namespaces", "-o=yaml"]
    unfinished = "--field-selector=status.phase!=Succeeded,status.phase!=Failed"
    return run([*listed, "deployments,statefulsets,daemonsets,cronjobs"]) + run([*listed, "pods", unfinished])

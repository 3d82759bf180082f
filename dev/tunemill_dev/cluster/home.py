"""The folder `$TUNEMILL_HOME` and the state folder of each cluster in it."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError

SOURCES = Path(__file__).resolve().parents[2] / "cluster"
"""`dev/cluster/`: go.mod files, manifests and image contexts."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,18}[a-z0-9])?")


def home() -> Path:
    """Return `$TUNEMILL_HOME`, by default `~/.cache/tunemill`, as an absolute path. It is created if missing."""
    path = Path(os.environ.get("TUNEMILL_HOME") or "~/.cache/tunemill").expanduser().absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, after waiting for other holders. The kernel frees it when a process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class ClusterFolder:
    """The state folder of a cluster. `down` deletes `disposable`; the image store is kept as a cache."""

    name: str
    root: Path

    @classmethod
    def of(cls, name: str) -> ClusterFolder:
        """Return the folder of the cluster with this name. ClusterError if it is no valid node and network name."""
        if not _NAME.fullmatch(name):
            raise ClusterError(
                f"The cluster name {name!r} is not usable: it must be 1 to 20 lower-case letters, digits and dashes, "
                "starting with a letter. Change --name."
            )
        return cls(name, home() / "clusters" / name)

    @classmethod
    def all(cls) -> list[ClusterFolder]:
        """Return the folders of all clusters that were started and not purged."""
        return [cls(path.name, path) for path in sorted((home() / "clusters").glob("*/")) if _NAME.fullmatch(path.name)]

    @property
    def lock(self) -> Path:
        """Held while the cluster is started, stopped or pruned."""
        return home() / "clusters" / f"{self.name}.lock"

    @property
    def init(self) -> Path:
        """The identity of the running process tree's first process."""
        return self.root / "init.json"

    @property
    def network(self) -> Path:
        """The addresses given to this cluster."""
        return self.root / "network.json"

    @property
    def plan(self) -> Path:
        """What the supervisor runs."""
        return self.root / "plan.json"

    @property
    def status(self) -> Path:
        """The supervisor's status of its components."""
        return self.root / "components.json"

    @property
    def credentials(self) -> Path:
        """S3 keys and Hub tokens, created at the first start."""
        return self.root / "credentials.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig, usable from the host."""
        return self.root / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """The components' configuration files."""
        return self.root / "config"

    @property
    def logs(self) -> Path:
        """One log per component, and the pods' logs."""
        return self.root / "logs"

    @property
    def etcd(self) -> Path:
        """The API objects."""
        return self.root / "etcd"

    @property
    def kubelet(self) -> Path:
        """Pod volumes."""
        return self.root / "kubelet"

    @property
    def volumes(self) -> Path:
        """The data of the node's persistent volumes."""
        return self.root / "volumes"

    @property
    def images(self) -> Path:
        """The image store: containerd's and BuildKit's roots."""
        return self.root / "images"

    @property
    def disposable(self) -> tuple[Path, ...]:
        """The folders that are deleted with the cluster."""
        return (
            self.init,
            self.network,
            self.plan,
            self.status,
            self.credentials,
            self.kubeconfig,
            self.pki,
            self.config,
            self.logs,
            self.etcd,
            self.kubelet,
            self.volumes,
        )

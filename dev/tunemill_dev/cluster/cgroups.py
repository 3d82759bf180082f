"""The parent cgroup of all pods and image builds of a cluster, in cgroup version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.processes import wait_until

_ROOT = Path("/sys/fs/cgroup")


def root_of(cluster: str) -> str:
    """Return the cluster's cgroup in the form that the kubelet and BuildKit expect."""
    return f"/tunemill-{cluster}"


def make(cluster: str) -> None:
    """Create the cgroup. The kubelet requires that it exists."""
    for folder in _folders(cluster):
        folder.mkdir(exist_ok=True)


def remove(cluster: str) -> None:
    """Remove the cgroup and all children. Its processes must have ended or be ending."""
    for folder in _folders(cluster):

        def removed(folder: Path = folder) -> bool:
            return _remove_tree(folder)

        if not wait_until(removed, seconds=10):
            raise ClusterError(f"The cgroup {folder} still contains processes 10 s after the end of the cluster.")


def _folders(cluster: str) -> list[Path]:
    name = root_of(cluster).lstrip("/")
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT / name]
    return [hierarchy / name for hierarchy in sorted(_ROOT.iterdir()) if (hierarchy / "cgroup.procs").exists()]


def _remove_tree(folder: Path) -> bool:
    for current, _, _ in os.walk(folder, topdown=False):
        try:
            Path(current).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            # Busy: a killed process in it has not been reaped yet.
            return False
    return True

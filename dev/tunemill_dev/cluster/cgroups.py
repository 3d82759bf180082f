"""The cgroup below which all pods and image builds of one cluster run, in cgroup version 1 or 2."""

from __future__ import annotations

import os
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.processes import wait_until

_ROOT = Path("/sys/fs/cgroup")


def root_of(cluster: str) -> str:
    """The cluster's cgroup, as the kubelet and BuildKit want to hear it."""
    return f"/tunemill-{cluster}"


def make(cluster: str) -> None:
    """Make the cgroup; the kubelet wants its root to exist."""
    for folder in _folders(cluster):
        folder.mkdir(exist_ok=True)


def remove(cluster: str) -> None:
    """Remove the cgroup and all below it; its processes must be gone, or just going."""
    for folder in _folders(cluster):

        def removed(folder: Path = folder) -> bool:
            return _remove_tree(folder)

        if not wait_until(removed, seconds=10):
            raise ClusterError(f"The cgroup {folder} still holds processes 10 s after the cluster's end.")


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
            # Busy: a process in it has been killed and is not yet reaped.
            return False
    return True

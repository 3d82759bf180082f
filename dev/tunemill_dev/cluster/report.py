"""The output of `status`: whether the cluster and its components run, and the disk usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tunemill_dev.cluster import binaries, tree
from tunemill_dev.cluster.cluster import Cluster, running
from tunemill_dev.cluster.home import ClusterFolder, home
from tunemill_dev.cluster.processes import run


def status(name: str) -> tuple[bool, str]:
    """Return whether the cluster and all its components run, and a report with the disk usage."""
    folder = ClusterFolder.of(name)
    if not tree.first_process(folder):
        return False, "\n".join([f"cluster {name}: not running", *_disk()])
    cluster = running(name)
    parts = json.loads(folder.status.read_text())
    lines = [
        f"cluster {name}: running",
        f"  kubeconfig   {cluster.kubeconfig}",
        f"  API server   {cluster.server}",
        f"  logs         {folder.logs}",
        "components",
        *(f"  {part:<26} {_state(state)}" for part, state in parts.items()),
        *_pods(cluster),
        "images",
        *(f"  {reference}" for reference in cluster.image_store.references()),
        *_disk(),
    ]
    return all(state["running"] for state in parts.values()), "\n".join(lines)


def _state(state: dict[str, object]) -> str:
    said = "running" if state["running"] else "not running"
    if state["restarts"]:
        said += f", restarted {state['restarts']} times, last exit code {state['last_exit']}"
    return said


def _pods(cluster: Cluster) -> Iterator[str]:
    for title, what in (("nodes", ["nodes"]), ("pods", ["pods", "--all-namespaces"])):
        yield title
        yield from (f"  {line}" for line in cluster.run_kubectl("get", *what).splitlines())


def _disk() -> Iterator[str]:
    yield "disk"
    places = [home() / "bin", binaries.compiled(), home() / "images"]
    for folder in ClusterFolder.all():
        places += [folder.images, folder.etcd, folder.kubelet, folder.logs]
    for place in places:
        if place.exists():
            yield f"  {_gibibytes(place):6.1f} GiB  {place}"


def _gibibytes(place: Path) -> float:
    # In a live store files disappear while du runs, so it exits with 1. Its sum is still usable.
    return int(run(["sh", "-c", 'du -sk "$1" 2>/dev/null || true', "du", place]).split()[0]) / 2**20

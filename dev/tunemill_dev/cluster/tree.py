"""The process tree of a cluster: started in separate namespaces, stopped by killing its first process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from tunemill_dev.cluster import cgroups, kernel_settings, link
from tunemill_dev.cluster.addresses import Addresses, routed_networks
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.home import ClusterFolder, home, locked
from tunemill_dev.cluster.processes import ProcessId, run

# Mounted over in the cluster's namespaces, because the programs have these paths built in.
_MOUNT_POINTS = (Path("/var/lib/kubelet"), Path("/var/lib/cni"))
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc")


def choose_addresses(folder: ClusterFolder) -> Addresses:
    """The cluster's addresses; chosen at its first start."""
    with _machine():
        known = Addresses.read(folder.network)
        if known:
            return known
        taken = routed_networks(run(["ip", "-json", "-4", "route", "show", "table", "main"]))
        others = [Addresses.read(other.network) for other in ClusterFolder.all()]
        chosen = Addresses.choose([*taken, *(other.network for other in others if other)])
        chosen.write(folder.network)
        return chosen


def start(folder: ClusterFolder, addresses: Addresses) -> None:
    """Start the cluster's plan, detached from this terminal. If this process dies too early, so does the tree."""
    cgroups.make(folder.name)
    folder.logs.mkdir(parents=True, exist_ok=True)
    log = folder.logs / "supervisor.log"
    with _machine():
        kernel_settings.remember()
        for path in _MOUNT_POINTS:
            path.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            supervisor = subprocess.Popen(
                ["unshare", *_NAMESPACES, "--fork", "--kill-child",
                 sys.executable, "-m", "tunemill_dev.cluster.supervisor", str(folder.plan)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                start_new_session=True,
            )  # fmt: skip
        assert supervisor.stdin
        assert supervisor.stdout
        with supervisor.stdin, supervisor.stdout:
            printed = supervisor.stdout.readline().strip()
            init = ProcessId.of(int(printed)) if printed.isdigit() else None
            if init is None:
                raise ClusterError.with_log("The cluster's first process did not start.", log)
            init.write(folder.init)
            link.connect(folder.name, addresses, init)
            supervisor.stdin.write("go\n")


def stop(folder: ClusterFolder) -> None:
    """Stop the tree and remove what it left on the machine. Works after any crash, and if nothing runs."""
    init = ProcessId.read(folder.init)
    if init:
        init.kill()
    link.disconnect(folder.name, Addresses.read(folder.network))
    cgroups.remove(folder.name)
    folder.init.unlink(missing_ok=True)
    with _machine():
        if not any(first_process(other) for other in ClusterFolder.all()):
            kernel_settings.restore()
            for path in _MOUNT_POINTS:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def forget(folder: ClusterFolder, *, purge: bool) -> None:
    """Delete the cluster's objects and keys, and with `purge` its images too."""
    for path in folder.disposable:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if purge and folder.root.exists():
        shutil.rmtree(folder.root)


def first_process(folder: ClusterFolder) -> ProcessId | None:
    """The cluster's first process, if it is alive."""
    init = ProcessId.read(folder.init)
    return init if init and init.is_alive() else None


def _machine() -> AbstractContextManager[None]:
    return locked(home() / "clusters" / "machine.lock")

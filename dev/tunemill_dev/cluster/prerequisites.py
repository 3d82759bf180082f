"""Checks the requirements of a cluster. Missing Debian packages are installed, other problems raise an error."""

from __future__ import annotations

import os
import platform
import shutil

from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.console import ClusterError, step
from tunemill_dev.cluster.home import home
from tunemill_dev.cluster.processes import run, succeeds

_PACKAGES = {
    "gcc": "gcc",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "openssl": "openssl",
    "pkg-config": "pkg-config",
    "unshare": "util-linux",
}
_FREE_GIB = 15


def check_platform() -> None:
    """Check that this is Linux and that the process has the required permissions. ClusterError otherwise."""
    if platform.system() != "Linux":
        raise ClusterError(f"A local cluster needs Linux with namespaces and cgroups. This is {platform.system()}.")
    if os.geteuid() != 0:
        raise ClusterError("A local cluster needs root (namespaces, mounts, cgroups): run the command again with sudo.")


def check() -> None:
    """Check that this machine can run a cluster. ClusterError with the remedy otherwise."""
    check_platform()
    free = shutil.disk_usage(home()).free / 2**30
    if free < _FREE_GIB:
        raise ClusterError(
            f"{home()} has {free:.0f} GiB of free disk, and images need {_FREE_GIB} GiB: free some "
            "(`down --purge` deletes a cluster's images), or point TUNEMILL_HOME elsewhere."
        )
    if binaries.missing(binaries.ALL):
        binaries.go()
    missing = sorted({package for command, package in _PACKAGES.items() if not shutil.which(command)})
    if not shutil.which("pkg-config") or not succeeds(["pkg-config", "--exists", "libseccomp"]):
        missing.append("libseccomp-dev")
    if missing:
        _install(missing)


def _install(packages: list[str]) -> None:
    if not shutil.which("apt-get"):
        raise ClusterError(f"Without apt-get, install these packages yourself: {', '.join(packages)}.")
    with step(f"install {' '.join(packages)}"):
        apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
        run([*apt, "update"], what="apt-get update failed")
        run([*apt, "install", "-y", "--no-install-recommends", *packages], what="Installing packages failed")

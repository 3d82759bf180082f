"""The programs of a cluster, built from Go modules and kept by the hash of everything that went into them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError, step
from tunemill_dev.cluster.home import SOURCES, home, locked

MODULES = SOURCES / "modules"
_KUBERNETES = re.compile(r"^\s*k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)", re.MULTILINE)
_VERSION_VARIABLE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Group:
    """One Go module of ours, `dev/cluster/modules/NAME`, whose `tool` lines are the programs to build."""

    name: str
    cgo: bool = False
    tags: str = ""
    linker_flags: str = "-s -w"
    renamed: tuple[tuple[str, str], ...] = ()


def _kubernetes() -> Group:
    found = _KUBERNETES.search((MODULES / "kubernetes" / "go.mod").read_text())
    if not found:
        raise ClusterError(f"{MODULES / 'kubernetes' / 'go.mod'} requires no version of k8s.io/kubernetes.")
    version, major, minor = found.groups()
    stamp = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {_VERSION_VARIABLE}.{key}={value}" for key, value in stamp.items())
    # The etcd module calls its program `server`.
    return Group("kubernetes", linker_flags=f"-s -w {flags}", renamed=(("server", "etcd"),))


KUBERNETES = _kubernetes()
CONTAINERD = Group("containerd")
# Without the tag, every pod with a seccomp profile fails. Static, so that it needs no library of the host.
RUNC = Group("runc", cgo=True, tags="seccomp netgo osusergo", linker_flags="-s -w -extldflags -static")
BUILDKIT = Group("buildkit")
COREDNS = Group("coredns")
HELM = Group("helm")
S3 = Group("versitygw")
ALL = (KUBERNETES, CONTAINERD, RUNC, BUILDKIT, COREDNS, S3, HELM)
"""What a cluster needs."""
KUBEFLOW = Group("kubeflow")
"""The peer of `make bench-operator`."""
KWOK = Group("kwok")
"""Simulated nodes, for the same bench."""
KUEUE = Group("kueue")
"""The queues of tests/platform."""
# Without the clients of clouds, which a server asks for its targets: a fifth of the packages.
PROMTOOL = Group("promtool", tags="remove_all_sd")
"""Tests the chart's alerts."""
GITOPS = Group("gitops")
"""Argo CD's and Flux's judgement, for tests; the one program of our own."""


def content_key(group: Group, module: Path) -> str:
    """12 hex digits that change when the module's files, the flags or the processor's architecture change."""
    digest = hashlib.sha256(f"{group} {platform.machine()}".encode())
    for path in (module / "go.mod", module / "go.sum", *sorted(module.glob("*.go"))):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def folder(group: Group) -> Path:
    """Where the group's programs lie, built or not."""
    return home() / "bin" / f"{group.name}-{content_key(group, MODULES / group.name)}"


def ensure(groups: Iterable[Group]) -> dict[str, Path]:
    """Build what is missing; returns the folder of each group by its name."""
    folders = {}
    for group in groups:
        target = folders[group.name] = folder(group)
        if not target.exists():
            with locked(home() / "bin" / "build.lock"):
                if not target.exists():
                    with step(f"build {group.name} (minutes, once)"):
                        _build(group, target)
                if all(folder(other).exists() for other in ALL):
                    shutil.rmtree(_compiled(), ignore_errors=True)
    return folders


def prune(*, in_use: Iterable[Path]) -> None:
    """Delete programs of earlier versions, but for those that one of these plans names."""
    current = {folder(group).name for group in (*ALL, KUBEFLOW, KWOK, KUEUE, PROMTOOL, GITOPS)}
    plans = "".join(plan.read_text() for plan in in_use if plan.exists())
    for old in (home() / "bin").glob("*-*/"):
        if old.name.removesuffix(".partial") not in current and f"/{old.name}/" not in plans:
            shutil.rmtree(old)


@cache
def source_of(group: Group, module: str) -> Path:
    """Where the source of a Go module lies that a group is built from: its manifests are in it."""
    command = [str(go()), "mod", "download", "-json", module]
    found = subprocess.run(command, cwd=MODULES / group.name, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(found.stdout)["Dir"])


def go() -> Path:
    """The Go command; ClusterError when there is none."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if not found:
        raise ClusterError("No `go` command was found on PATH: install Go 1.26 or newer, then try again.")
    return Path(found)


def _compiled() -> Path:
    """What the compiler leaves, 6 GB for all groups: of no use once the programs are there."""
    return home() / "go-build"


def _build(group: Group, target: Path) -> None:
    fresh = target.with_name(f"{target.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    argv = [go(), "build", "-p", str(min(2, os.cpu_count() or 1)), "-trimpath", "-mod=readonly", "-tags", group.tags]
    argv += ["-ldflags", group.linker_flags, "-o", f"{fresh}/", "tool"]
    log = target.with_name(f"{group.name}.log")
    with log.open("w") as output:
        done = subprocess.run(
            ["nice", "-n", "5", *map(str, argv)],
            cwd=MODULES / group.name,
            env={**os.environ, "CGO_ENABLED": "1" if group.cgo else "0", "GOCACHE": str(_compiled())},
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        raise ClusterError.with_log(f"Building {group.name} failed (exit code {done.returncode}).", log)
    for old, new in group.renamed:
        (fresh / old).rename(fresh / new)
    fresh.rename(target)
    log.unlink()

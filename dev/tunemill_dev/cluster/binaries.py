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
PACKAGE = "tunemill_programs"
"""The folder in which wheels keep programs; see `wheels`."""
_KUBERNETES = re.compile(r"^\s*k8s\.io/kubernetes v((\d+)\.(\d+)\.\S+)", re.MULTILINE)
_VERSION_VARIABLE = "k8s.io/component-base/version"
# The linker would leave out the debug information anyway.
_COMPILER_FLAGS = "all=-dwarf=false"
# The compiler collects its garbage less often: a fifth less of processor time.
_FASTER = {"GOGC": "400"}
_ROOM_BYTES = 40 << 30
"""What images and tests may take. With more free disk, what was compiled for the cluster is kept for the tests."""


@dataclass(frozen=True)
class Group:
    """Programs that are built and kept together, from a Go module of ours: `dev/cluster/modules/MODULE`."""

    name: str
    packages: tuple[str, ...]
    module: str = "programs"
    cgo: bool = False
    tags: str = ""
    linker_flags: str = "-s -w"
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> Path:
        """The folder of the module."""
        return MODULES / self.module

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the programs: those of their packages, without a version, unless they are renamed."""
        stems = (package.rstrip("/").split("/") for package in self.packages)
        names = (parts[-2] if re.fullmatch(r"v\d+", parts[-1]) else parts[-1] for parts in stems)
        return tuple(dict(self.renamed).get(name, name) for name in names)


def _group(name: str, repository: str, *packages: str, tags: str = "") -> Group:
    return Group(name, tuple(f"{repository}/{package}" for package in packages), tags=tags)


def _kubernetes() -> Group:
    found = _KUBERNETES.search((MODULES / "programs" / "go.mod").read_text())
    if not found:
        raise ClusterError(f"{MODULES / 'programs' / 'go.mod'} requires no version of k8s.io/kubernetes.")
    version, major, minor = found.groups()
    stamp = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {_VERSION_VARIABLE}.{key}={value}" for key, value in stamp.items())
    names = ("apiserver", "controller-manager", "scheduler", "proxy")
    programs = (*(f"kube-{name}" for name in names), "kubelet", "kubectl")
    return Group(
        "kubernetes",
        ("go.etcd.io/etcd/server/v3", *(f"k8s.io/kubernetes/cmd/{program}" for program in programs)),
        linker_flags=f"-s -w {flags}",
        # What the etcd module calls its program.
        renamed=(("server", "etcd"),),
    )


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"
_CNI = "github.com/containernetworking/plugins/plugins"

KUBERNETES = _kubernetes()
CONTAINERD = Group(
    "containerd",
    (
        *(f"{_CONTAINERD}/{program}" for program in ("containerd", "containerd-shim-runc-v2", "ctr")),
        *(f"{_CNI}/{plugin}" for plugin in ("ipam/host-local", "main/bridge", "main/loopback", "meta/portmap")),
    ),
)
# Without seccomp, every pod with such a profile fails. Static, so that it needs no library of the host. In a module of
# its own: it is compiled with cgo, and wants a newer library for cgroups than the kubelet.
RUNC = Group(
    "runc",
    ("github.com/opencontainers/runc",),
    module="runc",
    cgo=True,
    tags="seccomp netgo osusergo",
    linker_flags="-s -w -extldflags -static",
)
BUILDKIT = _group("buildkit", "github.com/moby/buildkit/cmd", "buildkitd", "buildctl")
COREDNS = Group("coredns", ("./coredns",))
HELM = _group("helm", "helm.sh/helm/v4/cmd", "helm")
"""Checks and installs the chart, in tests and `make lint`; the cluster and the demo do without it."""
S3 = _group("versitygw", "github.com/versity/versitygw/cmd", "versitygw")
ALL = (KUBERNETES, COREDNS, CONTAINERD, BUILDKIT, S3, RUNC)
"""What a cluster needs."""
KUEUE = _group("kueue", "sigs.k8s.io/kueue/cmd", "kueue")
"""The queues of tests/platform."""
GITOPS = Group("gitops", ("./gitops",))
"""Argo CD's and Flux's judgement, for tests; a program of our own."""
# Without the clients of clouds, which a server asks for its targets: a fifth of the packages.
PROMTOOL = _group("promtool", "github.com/prometheus/prometheus/cmd", "promtool", tags="remove_all_sd")
"""Tests the chart's alerts."""
# A main of our own: that of the project brings the clients of three clouds. In a separate module, whose versions do not
# rebuild the cluster's programs.
REGISTRY = Group("registry", ("./registry",), module="registry")
"""The OCI registry of tests."""
TESTED = (*ALL, HELM, KUEUE, GITOPS, PROMTOOL, REGISTRY)
"""What `make test` needs."""
KWOK = _group("kwok", "sigs.k8s.io/kwok/cmd", "kwok")
"""Simulated nodes, for `make bench-operator`."""
KUBEFLOW = _group("kubeflow", "github.com/kubeflow/trainer/v2/cmd", "trainer-controller-manager")
"""The peer of the same bench; the CRD of the JobSets that it makes comes with it."""


def content_key(group: Group, module: Path) -> str:
    """12 hex digits that change when the module's versions, sources of our own, flags or the processor change."""
    digest = hashlib.sha256(f"{group} {_COMPILER_FLAGS} {platform.machine()}".encode())
    own = (path for package in group.packages if package.startswith("./") for path in (module / package).glob("*.go"))
    for path in (module / "go.mod", module / "go.sum", *sorted(own)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]


def folder(group: Group) -> Path:
    """Where the group's programs lie, built or not: from wheels, if they are installed with the same content."""
    name = f"{group.name}-{content_key(group, group.source)}"
    installed = home() / "wheels" / PACKAGE / name
    if all((installed / program).is_file() for program in group.programs):
        return installed
    return home() / "bin" / name


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
                _drop_compiled()
    return folders


def missing(groups: Iterable[Group]) -> bool:
    """Whether some of the groups must be built."""
    return not all(folder(group).exists() for group in groups)


def prune(*, in_use: Iterable[Path]) -> None:
    """Delete programs of earlier versions, but for those that one of these plans names."""
    current = {folder(group).name for group in (*TESTED, KWOK, KUBEFLOW)}
    plans = "".join(plan.read_text() for plan in in_use if plan.exists())
    for old in (home() / "bin").glob("*-*/"):
        if old.name.removesuffix(".partial") not in current and f"/{old.name}/" not in plans:
            shutil.rmtree(old)


@cache
def source_of(group: Group, module: str) -> Path:
    """Where the source of a Go module lies that a group is built from: its manifests are in it."""
    command = [str(go()), "mod", "download", "-json", module]
    found = subprocess.run(command, cwd=group.source, stdout=subprocess.PIPE, text=True, check=True)
    return Path(json.loads(found.stdout)["Dir"])


def go() -> Path:
    """The Go command; ClusterError when there is none."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if not found:
        raise ClusterError(
            "No `go` command was found on PATH. Install Go 1.26 or newer, or install the programs of a release with "
            "`make cluster-wheels`; then try again."
        )
    return Path(found)


def compiled() -> Path:
    """What the compiler leaves, for the groups that share packages."""
    return home() / "go-build"


def _drop_compiled() -> None:
    """Delete it once the tests' programs are there too, and once those of the cluster are when the disk is small."""
    needed = TESTED if shutil.disk_usage(home()).free > _ROOM_BYTES else ALL
    if all(folder(group).exists() for group in needed):
        shutil.rmtree(compiled(), ignore_errors=True)


def _build(group: Group, target: Path) -> None:
    fresh = target.with_name(f"{target.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    argv = [go(), "build", "-p", str(min(2, os.cpu_count() or 1)), "-trimpath", "-mod=readonly", "-tags", group.tags]
    argv += ["-gcflags", _COMPILER_FLAGS, "-ldflags", group.linker_flags, "-o", f"{fresh}/", *group.packages]
    log = target.with_name(f"{group.name}.log")
    with log.open("w") as output:
        done = subprocess.run(
            ["nice", "-n", "5", *map(str, argv)],
            cwd=group.source,
            env={**os.environ, **_FASTER, "CGO_ENABLED": "1" if group.cgo else "0", "GOCACHE": str(compiled())},
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

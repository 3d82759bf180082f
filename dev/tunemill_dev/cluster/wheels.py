"""The cluster's programs as wheels, so that users need no Go: `python -m tunemill_dev.cluster.wheels FOLDER`.

A release builds them from the same modules as `binaries` does. `make cluster-wheels` installs them into
`$TUNEMILL_HOME/wheels`, where `binaries` finds programs of the same content before it builds any.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import platform
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.binaries import Group
from tunemill_dev.cluster.home import SOURCES

Content = Mapping[Group, tuple[str, ...]]
"""Programs by group; a group may be spread over several wheels."""

_NODE = ("kubelet", "kube-proxy", "kube-scheduler", "kubectl")
WHEELS: dict[str, Content] = {
    "tunemill-programs-control-plane": {
        binaries.KUBERNETES: tuple(name for name in binaries.KUBERNETES.programs if name not in _NODE)
    },
    "tunemill-programs-node": {binaries.KUBERNETES: _NODE},
    "tunemill-programs-containers": {
        group: group.programs for group in (binaries.CONTAINERD, binaries.RUNC, binaries.BUILDKIT)
    },
    "tunemill-programs-addons": {group: group.programs for group in (binaries.COREDNS, binaries.S3)},
}
"""Each below the 100 MB that PyPI takes of a file."""
_ROOT_PROJECT = SOURCES.parents[1] / "pyproject.toml"
# The programs are static, so every libc will do.
_TAGS = "py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.musllinux_1_1_{machine}"
_METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: Programs of the local Kubernetes cluster of Tunemill, built from Go modules
License-Expression: Apache-2.0
Description-Content-Type: text/plain

{programs}

They are installed by `make cluster-wheels` in a checkout of Tunemill and are of no use without it.
"""


def write_wheel(name: str, content: Content, version: str, machine: str, folder: Path) -> Path:
    """Write a wheel of programs that are built, the same bytes for the same programs, and return its path.

    Args:
        name: the distribution's name.
        content: what it holds.
        version: of the distribution.
        machine: the processor, as `platform.machine()` has it: x86_64 or aarch64.
        folder: where the wheel is written.
    """
    stem = f"{name.replace('-', '_')}-{version}"
    tags = _TAGS.format(machine=machine)
    path = folder / f"{stem}-{tags}.whl"
    records = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
        for member, data, mode in _members(name, content, version, tags, f"{stem}.dist-info"):
            info = zipfile.ZipInfo(member)
            info.external_attr = (0o100000 | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(info, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            records.append(f"{member},sha256={digest},{len(data)}\n")
        record = f"{stem}.dist-info/RECORD"
        wheel.writestr(zipfile.ZipInfo(record), "".join([*records, f"{record},,\n"]))
    return path


def _members(name: str, content: Content, version: str, tags: str, info: str) -> Iterator[tuple[str, bytes, int]]:
    """Yield path, content and mode of each file but RECORD."""
    for group, programs in content.items():
        source = binaries.folder(group)
        for program in programs:
            yield f"{binaries.PACKAGE}/{source.name}/{program}", (source / program).read_bytes(), 0o755
    listed = ", ".join(program for programs in content.values() for program in programs)
    yield f"{info}/METADATA", _METADATA.format(name=name, version=version, programs=listed).encode(), 0o644
    expanded = "".join(f"Tag: py3-none-{tag}\n" for tag in tags.removeprefix("py3-none-").split("."))
    head = "Wheel-Version: 1.0\nGenerator: tunemill\nRoot-Is-Purelib: false\n"
    yield f"{info}/WHEEL", (head + expanded).encode(), 0o644


def project_version() -> str:
    """Return the version of the project, which the wheels have, too."""
    found = re.search(r'^version = "(.+)"$', _ROOT_PROJECT.read_text(), re.MULTILINE)
    assert found, _ROOT_PROJECT
    return found[1]


def main() -> int:
    """Build the programs that are missing, and write all wheels into a folder."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.cluster.wheels", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the wheels are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    binaries.ensure(group for content in WHEELS.values() for group in content)
    for name, content in WHEELS.items():
        print(write_wheel(name, content, project_version(), platform.machine(), folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The root file system of the base image: a minimal Debian with Python, from the machine's own package sources."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError, step
from tunemill_dev.cluster.home import home, locked
from tunemill_dev.cluster.processes import run

_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_SOURCES = Path("/etc/apt")
_RELEASE = Path("/etc/os-release")
# Files that an image never needs, a third of the size.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*", "/var/cache/apt/*")


def base_archive() -> Path:
    """Return the file system as `base.tar`, in a folder named by a hash of its sources. Takes half a minute once."""
    suite = _suite(_RELEASE.read_text())
    sources = matching_sources(suite, sorted([*_SOURCES.glob("*.list"), *_SOURCES.glob("sources.list.d/*")]))
    if not sources:
        raise ClusterError(f"No file in {_SOURCES} lists packages of {suite}, which the base image needs.")
    recipe = "\n".join([suite, *_PACKAGES, *_LEFT_OUT, *(path.read_text() for path in sources)])
    folder = home() / "images" / f"base-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    archive = folder / "base.tar"
    with locked(home() / "images" / "base.lock"):
        if not archive.exists():
            with step(f"base file system ({suite}, {', '.join(_PACKAGES)})"):
                folder.mkdir(parents=True, exist_ok=True)
                fresh = folder / "partial.tar"
                options = ["--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
                options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
                run(["mmdebstrap", *options, suite, fresh, *sources], what="mmdebstrap failed")
                fresh.rename(archive)
                for old in folder.parent.glob("base-*/"):
                    if old != folder:
                        shutil.rmtree(old)
    return archive


def matching_sources(suite: str, files: Iterable[Path]) -> list[Path]:
    """Return the apt source files, in both formats, that list only this suite and its updates (`SUITE-…`)."""
    chosen = []
    for path in files:
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        if path.suffix == ".sources":
            suites = [word for line in lines if line.startswith("Suites:") for word in line.split()[1:]]
        else:
            suites = [re.sub(r"\[.*?\]", "", line).split()[2] for line in lines if line.startswith("deb ")]
        if suites and all(word == suite or word.startswith(f"{suite}-") for word in suites):
            chosen.append(path)
    return chosen


def _suite(release: str) -> str:
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', release, re.MULTILINE)
    if not found:
        raise ClusterError(f"{_RELEASE} has no VERSION_CODENAME. Build the base image on Debian or Ubuntu.")
    return found[1]

"""The Helm program of the local cluster, without the user's settings, repositories and plugins."""

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunemill_dev.cluster import binaries
from tunemill_dev.testbed import CHART, RELEASE, SYSTEM_NAMESPACE


class HelmError(Exception):
    """Helm failed. The message is its output."""


def helm(*arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm and return the result, even if it fails. The values are passed as a file."""
    with tempfile.TemporaryDirectory() as folder:
        homes = {f"HELM_{kind}_HOME": f"{folder}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        if values is not None:
            file = Path(folder) / "values.yaml"
            file.write_text(yaml.safe_dump(dict(values)))
            arguments = (*arguments, "--values", str(file))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")} | homes
        return subprocess.run([_program(), *arguments], env=environment, capture_output=True, text=True, check=False)


def rendered(values: Mapping[str, Any], release: str = RELEASE) -> str:
    """Return the manifests that the chart renders with values over its defaults.

    Raises:
        HelmError: the chart cannot be rendered.
    """
    done = helm("template", release, str(CHART), "--namespace", SYSTEM_NAMESPACE, values=values)
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


@functools.cache
def _program() -> Path:
    return binaries.ensure([binaries.HELM])[binaries.HELM.name] / "helm"

"""The chart, rendered by the real Helm."""

import functools
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tunemill_dev.cluster import binaries

REPOSITORY = Path(__file__).parents[3]
CHART = REPOSITORY / "charts" / "tunemill"
RELEASE = "tunemill"
NAMESPACE = "tunemill-system"

Object = dict[str, Any]


@functools.cache
def helm_program() -> Path:
    """Return the Helm that the local cluster uses; it is built when it is missing."""
    return binaries.ensure([binaries.HELM])[binaries.HELM.name] / "helm"


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm without the user's own settings, repositories and plugins; values are given to it as a file."""
    with tempfile.TemporaryDirectory() as folder:
        homes = {f"HELM_{kind}_HOME": f"{folder}/{kind}" for kind in ("CACHE", "CONFIG", "DATA")}
        if values is not None:
            file = Path(folder) / "values.yaml"
            file.write_text(yaml.safe_dump(values))
            arguments = (*arguments, "--values", str(file))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")} | homes
        return subprocess.run(
            [helm_program(), *arguments], env=environment, capture_output=True, text=True, check=False
        )


@dataclass(frozen=True)
class Rendered:
    """The objects that a set of values makes."""

    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        """Return the objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str) -> Object:
        """Return the only object of a kind."""
        (found,) = self.all(kind)
        return found

    @property
    def pod(self) -> Object:
        """The operator's pod template."""
        template: Object = self.one("Deployment")["spec"]["template"]
        return template

    @property
    def container(self) -> Object:
        """The operator's container."""
        (container,) = self.pod["spec"]["containers"]
        return dict(container)

    @property
    def flags(self) -> dict[str, str]:
        """The operator's flags with their values."""
        command, *flags = self.container["args"]
        assert command == "run"
        return {name: value for name, _, value in (flag.partition("=") for flag in flags)}

    def rules_of_operator(self) -> list[tuple[str, str, Object]]:
        """Return (kind of the role, namespace or "", rule) for every rule that is bound to the operator."""
        bound = []
        for binding in self.all("ClusterRoleBinding") + self.all("RoleBinding"):
            reference = binding["roleRef"]
            namespace = binding["metadata"].get("namespace", "")
            for role in self.all(reference["kind"]):
                same_namespace = role["metadata"].get("namespace", "") == namespace
                if role["metadata"]["name"] == reference["name"] and same_namespace:
                    bound += [(role["kind"], namespace, rule) for rule in role["rules"]]
        return bound


def render(release: str = RELEASE, **values: Any) -> Rendered:
    """Render the chart as `helm install` would, with these values over the defaults."""
    done = helm("template", release, str(CHART), "--namespace", NAMESPACE, values=values)
    assert done.returncode == 0, done.stderr
    return Rendered(tuple(found for found in yaml.safe_load_all(done.stdout) if found))


def refusal(values: Object) -> str:
    """Return what Helm says against these values."""
    done = helm("template", RELEASE, str(CHART), values=values)
    assert done.returncode != 0, f"Helm accepted {values}"
    return done.stderr

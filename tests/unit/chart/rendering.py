"""The chart, rendered by the real Helm."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import yaml
from tunemill_dev.chart.helm import helm, rendered
from tunemill_dev.testbed import CHART, RELEASE
from tunemill_dev.testbed import REPOSITORY_ROOT as REPOSITORY
from tunemill_dev.testbed import SYSTEM_NAMESPACE as NAMESPACE

__all__ = ["CHART", "NAMESPACE", "RELEASE", "REPOSITORY", "Object", "Rendered", "helm", "refusal", "render"]

Object = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """The objects rendered with a set of values."""

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

    @property
    def environment(self) -> dict[str, str]:
        """The literal environment variables of the operator."""
        return {item["name"]: item["value"] for item in self.container["env"] if "value" in item}

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
    return _rendered(release, json.dumps(values))


def refusal(values: Object) -> str:
    """Return the error of Helm for these values."""
    done = helm("template", RELEASE, str(CHART), values=values)
    assert done.returncode != 0, f"Helm accepted {values}"
    return done.stderr


@functools.cache
def _rendered(release: str, values: str) -> Rendered:
    # The CRDs are long: the loader in C takes a tenth of the time.
    documents = yaml.load_all(rendered(json.loads(values), release), Loader=yaml.CSafeLoader)
    return Rendered(tuple(found for found in documents if found))

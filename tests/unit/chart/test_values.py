"""What the chart lets people say, and how it refuses the rest."""

import json
from typing import Any

import pytest
import yaml
from chart.rendering import CHART, helm, refusal

DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def differences(values: dict[str, Any], schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names that only the values or only the schema has."""
    known = schema["properties"]
    nested = [
        differences(values[name], one, f"{prefix}{name}.")
        for name, one in known.items()
        if name in values and "properties" in one
    ]
    return {f"{prefix}{name}" for name in values.keys() ^ known.keys()}.union(*nested)


def closed(schema: dict[str, Any]) -> bool:
    """Tell whether the schema refuses unknown names wherever it lists names."""
    nested = all(closed(one) for one in schema.get("properties", {}).values())
    return nested and ("properties" not in schema or schema["additionalProperties"] is False)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"watchNamespaces": ["team-a"], "networkPolicy": {"enabled": True}},
        {"metrics": {"enabled": True, "serviceMonitor": {"enabled": True}}, "progress": {"enabled": False}},
    ],
)
def test_helm_lints_the_chart_strictly(values: dict[str, Any]) -> None:
    """No warning with the defaults, in namespaced mode, and with what is off by default turned on."""
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_knows_every_value_and_no_other() -> None:
    """A value in one of the two files alone would be refused, or be explained nowhere. `global` is Helm's own."""
    assert differences(DEFAULTS, SCHEMA) == {"global"}
    assert closed(SCHEMA)


def test_every_group_of_values_has_a_comment() -> None:
    """values.yaml is the reference of the values: a group without a comment would be explained nowhere."""
    groups = (CHART / "values.yaml").read_text().split("\n\n")
    assert [group for group in groups if "# " not in group] == []


@pytest.mark.parametrize(
    ("values", "where", "why"),
    [
        ({"replica": 3}, "at ''", "'replica' not allowed"),
        ({"image": {"name": "operator"}}, "at '/image'", "'name' not allowed"),
        ({"image": {"digest": "latest"}}, "at '/image/digest'", "does not match"),
        ({"image": {"pullPolicy": "Sometimes"}}, "at '/image/pullPolicy'", "'Always', 'IfNotPresent', 'Never'"),
        ({"trainer": {"repository": "trainer"}}, "at '/trainer'", "'repository' not allowed"),
        ({"trainer": {"imagePullSecrets": ["registry"]}}, "at '/trainer/imagePullSecrets/0'", "want object"),
        ({"watchNamespaces": "team-a"}, "at '/watchNamespaces'", "want array"),
        ({"watchNamespaces": ["Team_A"]}, "at '/watchNamespaces/0'", "does not match"),
        ({"watchNamespaces": ["team-a", "team-a"]}, "at '/watchNamespaces'", "are equal"),
        ({"replicas": "two"}, "at '/replicas'", "want integer"),
        ({"replicas": -1}, "at '/replicas'", "minimum"),
        ({"podAnnotations": {"scrape": True}}, "at '/podAnnotations/scrape'", "want string"),
        ({"crds": {"keep": "yes"}}, "at '/crds/keep'", "want boolean"),
        ({"progress": {"port": 443}}, "at '/progress/port'", "minimum"),
        ({"progress": {"port": 8080}}, "at '/progress/port'", "'not' failed"),
        ({"progress": {"tls": {"secret": "tls"}}}, "at '/progress/tls'", "'secret' not allowed"),
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "at '/metrics/enabled'", "value must be true"),
        ({"logging": {"level": "loud"}}, "at '/logging/level'", "'debug', 'info', 'warning', 'error'"),
        ({"networkPolicy": {"apiServerPorts": []}}, "at '/networkPolicy/apiServerPorts'", "minItems"),
        ({"extraArgs": ["workers 32"]}, "at '/extraArgs/0'", "does not match"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], where: str, why: str) -> None:
    """Typos and values of the wrong kind end before anything is installed, with the place and the reason."""
    said = refusal(values)
    assert where in said
    assert why in said

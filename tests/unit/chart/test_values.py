"""Accepted and rejected values of the chart."""

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
    """Return whether the schema rejects unknown names at every level."""
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
    """No warning with the defaults, in namespaced mode, and with all optional parts enabled."""
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_matches_the_values() -> None:
    """A value in one of the two files only would be rejected or undocumented. `global` is Helm's own."""
    assert differences(DEFAULTS, SCHEMA) == {"global"}
    assert closed(SCHEMA)


NOT_BOOLEAN = ["yes", 1]
NOT_LABELS = [["a"], {"a": 1}, {"not a name": "x"}, {"a": "not a value"}]
NOT_TEXTS = ["a", {"a": True}]
NOT_A_NAME = [7, "Upper", "under_score", "-a"]
NOT_OBJECTS = ["a", ["a"]]
NOT_SECRETS = ["registry", ["registry"], [{}], [{"name": ""}], [{"name": "registry", "key": "x"}]]
NOT_A_PLAIN_URL = [7, "proxy:3128", "socks5://proxy", "http://", "http://user:word@proxy:3128", "http://proxy/path"]
NOT_QUANTITIES = [{"cpu": "many"}, {"cpu": True}, {"memory": "1 Gi"}, {"memory": "1GB"}, {"cpu": -1}]
NOT_PORTS = [443, [], ["https"], [0], [65536], [443, 443]]
NOT_A_USER = ["65532", 0, -1, 1.5, True]
BAD: dict[str, list[Any]] = {
    "image.repository": [7, "", "with space", "name@sha256:0a", "name:"],
    "image.tag": [1.0, "with space", "-begins", "t" * 129],
    "image.digest": ["latest", "sha256:0a", "sha512:" + "0a" * 32],
    "image.pullPolicy": ["Sometimes", "always"],
    "imagePullSecrets": NOT_SECRETS,
    "trainer.image": [7, "with space"],
    "trainer.imagePullPolicy": ["", "Sometimes"],
    "trainer.imagePullSecrets": NOT_SECRETS,
    "hub.endpoints": ["https://hub", [7], ["hub"], ["https://me:pa@hub"], ["https://a,b"], ["https://a?x"]],
    "watchNamespaces": ["team-a", [7], ["Team_A"], ["n" * 64], ["team-a", "team-a"], ["team.a"]],
    "clusterName": [*NOT_A_NAME, "n" * 64, "prod.eu"],
    "runAsUser": NOT_A_USER,
    "stages.runAsUser": NOT_A_USER,
    "stages.instanceMetadata": NOT_BOOLEAN,
    "profiles.enabled": NOT_BOOLEAN,
    "caBundle.configMap": NOT_A_NAME,
    "caBundle.secret": NOT_A_NAME,
    "caBundle.key": [7, "", "a/b"],
    "sigstore.enabled": NOT_BOOLEAN,
    "sigstore.configMap": NOT_A_NAME,
    "sigstore.key": [7, "", "a/b"],
    "proxy.http": NOT_A_PLAIN_URL,
    "proxy.https": NOT_A_PLAIN_URL,
    "proxy.noProxy": ["a", [7], ["a,b"], [""], ["a", "a"]],
    "replicas": ["two", -1, 11, 1.5],
    "resources.requests": NOT_QUANTITIES,
    "resources.limits": NOT_QUANTITIES,
    "nodeSelector": NOT_LABELS,
    "tolerations": NOT_OBJECTS,
    "affinity": ["a", []],
    "topologySpreadConstraints": NOT_OBJECTS,
    "priorityClassName": NOT_A_NAME,
    "podAnnotations": NOT_TEXTS,
    "podLabels": NOT_LABELS,
    "serviceAccount.create": NOT_BOOLEAN,
    "serviceAccount.name": NOT_A_NAME,
    "serviceAccount.annotations": NOT_TEXTS,
    "rbac.create": NOT_BOOLEAN,
    "rbac.aggregateClusterRoles": NOT_BOOLEAN,
    "crds.enabled": NOT_BOOLEAN,
    "crds.keep": NOT_BOOLEAN,
    "progress.enabled": NOT_BOOLEAN,
    "progress.port": ["8443", 443, 65536, 8080],
    "progress.writes.seconds": ["10", 0, 1.5, 3601],
    "progress.writes.perSecond": ["10", 0, 1.5, 1001],
    "progress.tls.existingSecret": NOT_A_NAME,
    "metrics.enabled": NOT_BOOLEAN,
    "metrics.serviceMonitor.enabled": NOT_BOOLEAN,
    "metrics.serviceMonitor.interval": [30, "30", "a minute"],
    "metrics.serviceMonitor.labels": NOT_LABELS,
    "metrics.prometheusRule.enabled": NOT_BOOLEAN,
    "metrics.prometheusRule.labels": NOT_LABELS,
    "metrics.dashboard.enabled": NOT_BOOLEAN,
    "metrics.dashboard.labels": NOT_LABELS,
    "metrics.dashboard.annotations": NOT_TEXTS,
    "logging.format": ["xml", 7],
    "logging.level": ["loud", "INFO"],
    "tracing.endpoint": [7, "collector:4317", "grpc://collector:4317", "http://user:word@collector", "http://a b"],
    "networkPolicy.enabled": NOT_BOOLEAN,
    "networkPolicy.apiServerPorts": NOT_PORTS,
    "networkPolicy.stages.enabled": NOT_BOOLEAN,
    "networkPolicy.stages.namespaces": ["team-a", [7], ["Team_A"], ["team-a", "team-a"]],
    "networkPolicy.stages.ports": NOT_PORTS,
    "networkPolicy.stages.exceptCidrs": ["10.0.0.0/8", [7], ["10.0.0.0"], ["all"], ["10.0.0.0/8", "10.0.0.0/8"]],
    "admission.enabled": NOT_BOOLEAN,
    "admission.profileLimits": NOT_BOOLEAN,
    "admission.deniedNamespaces": ["kube-system", [7], ["Kube"], ["a", "a"]],
    "podDisruptionBudget.enabled": NOT_BOOLEAN,
    "gpuCheck.enabled": NOT_BOOLEAN,
    "gpuCheck.minutes": ["10", 0],
    "gpuCheck.gpuResource": [1, ""],
    "gpuCheck.nodeSelector": NOT_LABELS,
    "gpuCheck.tolerations": NOT_OBJECTS,
    "gpuCheck.runtimeClassName": ["Upper", "under_score"],
    "gpuCheck.resources.requests": NOT_QUANTITIES,
    "gpuCheck.resources.limits": NOT_QUANTITIES,
    "extraArgs": ["--workers=32", [32], ["workers 32"]],
}
"""What each value may not be: of the wrong kind, out of range, malformed."""


def leaves(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of the values that hold no others."""
    found = set()
    for name, part in schema["properties"].items():
        found |= leaves(part, f"{prefix}{name}.") if "properties" in part else {f"{prefix}{name}"}
    return found


def groups(schema: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of the values with nested values, each with a dot; the whole is ""."""
    nested = [groups(part, f"{prefix}{name}.") for name, part in schema["properties"].items() if "properties" in part]
    return {prefix}.union(*nested)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by dotted names as Helm takes them."""
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        part = whole
        for step in path:
            part = part.setdefault(step, {})
        part[last] = value
    return whole


def test_every_value_has_a_case() -> None:
    """A new value needs an invalid example. `global` is Helm's own."""
    assert BAD.keys() == leaves(SCHEMA) - {"global"}


@pytest.mark.parametrize("turn", range(max(map(len, BAD.values()))))
def test_an_invalid_value_is_rejected_by_name(turn: int) -> None:
    """All errors are reported before the installation, one line per value."""
    wrong = {name: values[turn] for name, values in BAD.items() if turn < len(values)}
    said = refusal(nested(wrong))
    unsaid = [name for name in wrong if f"- at '/{name.replace('.', '/')}" not in said]
    assert unsaid == [], f"{[(name, wrong[name]) for name in unsaid]} were accepted; said was {said}"


def test_an_unknown_value_is_rejected_at_every_level() -> None:
    """Helm would ignore a typo; the message has its name and group."""
    known = groups(SCHEMA)
    said = refusal(nested({f"{group}tpyo": 1 for group in known}))
    for group in known:
        place = "/" + group.rstrip(".").replace(".", "/") if group else ""
        assert f"- at '{place}': additional properties 'tpyo' not allowed" in said


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"metrics": {"serviceMonitor": {"enabled": True}}}, "/metrics/enabled"),
        ({"metrics": {"prometheusRule": {"enabled": True}}}, "/metrics/enabled"),
        ({"metrics": {"dashboard": {"enabled": True}}}, "/metrics/enabled"),
        ({"networkPolicy": {"stages": {"enabled": True}}}, "/watchNamespaces"),
        ({"caBundle": {"configMap": "a", "secret": "b"}}, "/caBundle/secret"),
    ],
)
def test_a_missing_dependent_value_is_named(values: dict[str, Any], where: str) -> None:
    """Without it the setting would have no effect, or never work."""
    assert f"- at '{where}'" in refusal(values)

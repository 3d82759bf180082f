"""The Grafana dashboard and the alerts query existing metrics."""

import json
import re
from typing import Any

from chart.rendering import render
from prometheus_client import Histogram
from tunemill_operator.telemetry.metrics import Metrics

WATCHED: dict[str, Any] = {
    "enabled": True,
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True, "labels": {"found_by": "me"}},
}
NAME = re.compile(r"\b[a-z][a-z0-9_]*_[a-z0-9_]+\b(?=\{)")


def series() -> dict[str, set[str]]:
    """Return the name of every series of the operator, with its own labels."""
    metrics = Metrics("", "")
    metrics.queue.observe(lambda: 0, list, 1)
    metrics.observe_phases(list)
    known: dict[str, set[str]] = {}
    for collector, names in metrics.registry._collector_to_names.items():
        labels = set(getattr(collector, "_labelnames", ()))
        if isinstance(collector, Histogram):
            labels |= {"le"}
        known |= dict.fromkeys(names, labels)
        for sample in (sample for family in collector.collect() for sample in family.samples):
            known.setdefault(sample.name, set()).update(sample.labels)
    return known


def of_dashboard() -> list[str]:
    """Return the dashboard's queries."""
    (config,) = (found for found in render(metrics=WATCHED).all("ConfigMap"))
    dashboard = json.loads(config["data"]["tunemill.json"])
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def of_alerts() -> list[str]:
    """Return the alerts' conditions."""
    (group,) = render(metrics=WATCHED).one("PrometheusRule")["spec"]["groups"]
    return [rule["expr"] for rule in group["rules"]]


def test_every_query_uses_metrics_and_labels_of_the_operator() -> None:
    """A renamed metric or label would leave an empty panel, or an alert that never fires."""
    known = series()
    of_target = {"job", "namespace", "pod"}
    for query in [*of_dashboard(), *of_alerts()]:
        names = set(NAME.findall(query))
        assert names <= known.keys(), query
        labels = of_target.union(*(known[name] for name in names))
        matched = {
            label for selector in re.findall(r"\{(.*?)\}", query) for label in re.findall(r"(\w+)[=!]", selector)
        }
        grouped = {label for group in re.findall(r"\b(?:by|on) \((.*?)\)", query) for label in group.split(", ")}
        assert matched | grouped <= labels, query


def test_every_query_is_limited_to_this_installation() -> None:
    """Other controllers have metrics with the same names."""
    for query in of_dashboard():
        assert query.count('{job="$job"') == query.count("{"), query
    for query in of_alerts():
        assert query.count('{namespace="tunemill-system", job="tunemill-metrics"') == query.count("{"), query


def test_panels_do_not_overlap_and_have_unique_names() -> None:
    """Grafana shows the dashboard as it is."""
    (config,) = (found for found in render(metrics=WATCHED).all("ConfigMap"))
    assert config["metadata"]["labels"]["found_by"] == "me"
    panels = json.loads(config["data"]["tunemill.json"])["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_every_alert_has_a_severity_and_a_description() -> None:
    """The summary is the first text that an on-call engineer reads."""
    (group,) = render(metrics=WATCHED).one("PrometheusRule")["spec"]["groups"]
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"].endswith(".")

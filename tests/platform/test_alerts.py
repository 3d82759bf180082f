"""The chart's alerts and the queries of its dashboard, checked with promtool."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart.rendering import render
from tunemill_dev.cluster import binaries

TESTS = Path(__file__).parent / "alerts" / "tests.yaml"
WATCHED = {"enabled": True, "prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}


@pytest.fixture
def rules() -> dict[str, Any]:
    """The rules of the rendered chart."""
    spec: dict[str, Any] = render(metrics=WATCHED).one("PrometheusRule")["spec"]
    return spec


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool in a folder, with any exit code."""
    program = binaries.ensure([binaries.PROMTOOL])[binaries.PROMTOOL.name] / "promtool"
    return subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_alerts_fire_only_when_expected(rules: dict[str, Any], tmp_path: Path) -> None:
    """Each one with series before, during and after the problem, with its labels and its text."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(TESTS, tmp_path)
    done = promtool(tmp_path, "test", "rules", "tests.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_firing_and_a_silent_case(rules: dict[str, Any]) -> None:
    """A new alert needs a test."""
    tried = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    for fires in (True, False):
        assert {case["alertname"] for case in tried if bool(case["exp_alerts"]) is fires} == alerts


def test_prometheus_accepts_every_query(rules: dict[str, Any], tmp_path: Path) -> None:
    """Also those of the dashboard, which are checked as rules."""
    dashboard = json.loads(render(metrics=WATCHED).one("ConfigMap")["data"]["tunemill.json"])
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    recorded = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    rules["groups"].append({"name": "dashboard", "rules": recorded})
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = promtool(tmp_path, "check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(recorded) + len(rules['groups'][0]['rules'])} rules found" in done.stdout

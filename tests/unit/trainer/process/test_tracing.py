"""Spans of a stage: children of the run's span, and no effect without a collector."""

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from api.collector import Collector, a_collector
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.traces import ENV_TRACEPARENT, SpanRef
from tunemill_trainer.process import tracing

RUN = RunSpec(
    namespace="team-a",
    name="tools",
    run_id="r1",
    spec=FineTuneSpec.model_validate(
        {
            "baseModel": {"id": "acme/tiny"},
            "dataset": {"uri": "s3://team-a/calls.jsonl", "region": "us-east-1"},
            "publish": {"repository": "acme/tools"},
        }
    ),
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that is configured in the environment."""
    logger = logging.getLogger("opentelemetry")
    level = logger.level
    with a_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        yield collector
    logger.setLevel(level)


@tracing.step("download")
def download(what: str) -> str:
    """Run a step of a stage."""
    return what


def test_stage_and_steps_are_children_of_the_run(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's environment variable has the run's span."""
    run = SpanRef.of_run("uid", "r1")
    monkeypatch.setenv(ENV_TRACEPARENT, run.traceparent)
    with tracing.stage(Stage.TRAIN, RUN):
        assert download("weights") == "weights"
    (stage,), (part,) = collector.named("train"), collector.named("download")
    assert (stage.trace, stage.parent) == (f"{run.trace:032x}", f"{run.span:016x}")
    assert (part.trace, part.parent) == (stage.trace, stage.id)
    assert stage.service == "tunemill-trainer"
    assert (stage.attributes["tunemill.finetune"], stage.attributes["tunemill.run.id"]) == ("tools", "r1")
    assert not stage.failed


def test_a_failed_stage_is_exported_as_a_failed_span(collector: Collector) -> None:
    """Without a run's span, it is the root of a new trace."""
    with pytest.raises(ZeroDivisionError), tracing.stage(Stage.PREPARE, RUN):
        1 / 0  # noqa: B018 - to fail
    (stage,) = collector.named("prepare")
    assert stage.failed
    assert stage.parent == ""


def test_invalid_tracing_variables_do_not_fail_a_stage(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names them."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many")
    with tracing.stage(Stage.TRAIN, RUN):
        assert download("weights") == "weights"
    assert "tracing is disabled" in caplog.text
    assert not collector.spans


def test_opentelemetry_is_imported_only_when_enabled() -> None:
    """It costs memory and startup time."""
    script = (
        "import sys, tunemill_trainer.stages.runner; print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"

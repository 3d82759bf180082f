"""Evaluate on a trained run: metrics, report, and reuse of earlier results."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from learn.figures import at_least, at_most
from learn.runs import Recipe, TrainedRun, a_trained_run
from learn.training import ALL_TAGS
from tunemill_api import keys
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import EvaluationFacts, MetricFacts, Rival
from tunemill_trainer.judge.report import Report


def metrics(facts: EvaluationFacts) -> dict[str, MetricFacts]:
    """By name."""
    return {metric.name: metric for metric in facts.metrics}


def evaluate_output(run: TrainedRun, into: Path) -> tuple[Report, list[dict]]:
    """Return the output of evaluate: the report, and the lines of the cases."""
    run.world.workspace().fetch(Stage.EVALUATE, keys.evaluate_key(run.train_key, run.run.spec), into)
    report = Report.model_validate_json((into / "report.json").read_text())
    return report, [json.loads(line) for line in (into / "cases.jsonl").open()]


def evaluated(run: TrainedRun) -> EvaluationFacts:
    """Run the stage, which has to succeed."""
    ended = run.stage(Stage.EVALUATE)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.evaluation is not None
    return ended.report.evaluation


@pytest.mark.learns
def test_training_teaches_the_right_calls(extended_run: TrainedRun, tmp_path: Path):
    """The base model makes none; the tuned model makes the right one, and abstains if none is expected."""
    facts = evaluated(extended_run)
    found = metrics(facts)
    assert found["abstention_accuracy"].cases >= 25, "too few cases for a share"
    at_most("exact match of the base", found["exact_match"].base, 0.05)
    at_least("correct tool", found["tool_name_accuracy"].tuned, 0.5)
    at_least("exact match", found["exact_match"].tuned, 0.5)
    at_least("abstention", found["abstention_accuracy"].tuned, 0.6)
    report, lines = evaluate_output(extended_run, tmp_path)
    assert extended_run.run.prepared is not None
    assert report.rows == facts.rows == extended_run.run.prepared.dataset.evaluation_rows
    assert len(lines) == report.cases
    assert sum(line["tuned"]["right"] for line in lines) == report.right.tuned
    assert report.right.p_value < 0.001
    assert report.settings.reply_format == "hermes"
    assert report.settings.adapter.startswith("merged: ")
    assert {"no_call", "single_call"} <= set(report.slices)
    assert sum(report.tuned_faults.values()) == sum(bool(line["tuned"]["fault"]) for line in lines)
    assert {mistake.id for mistake in report.mistakes} <= {line["id"] for line in lines if line["tuned"]["fault"]}
    assert float(found["tool_f1"].tuned) > float(found["tool_f1"].base)
    assert float(found["ast_match"].tuned) >= float(found["exact_match"].tuned)


def test_an_existing_evaluation_is_reused(extended_run: TrainedRun):
    """A second pod finds the output and exits."""
    first = evaluated(extended_run)
    ended = extended_run.stage(Stage.EVALUATE)
    assert ended.report is not None
    assert not ended.report.executed
    assert ended.report.evaluation == first


@pytest.fixture(scope="module")
def worse_run(extended_run: TrainedRun) -> TrainedRun:
    """A run on the same data with hardly any training."""
    run = extended_run.changed(training={"maxSteps": 2})
    assert run.stage(Stage.TRAIN).code == 0
    return run


def test_replies_of_the_base_model_are_reused(extended_run: TrainedRun, worse_run: TrainedRun):
    """Another training on the same data evaluates only its own adapter."""
    before = evaluated(extended_run)
    ended = worse_run.stage(Stage.EVALUATE)
    assert ended.report is not None
    assert ended.report.evaluation is not None
    after = metrics(ended.report.evaluation)
    assert {name: metric.base for name, metric in after.items()} == {
        name: metric.base for name, metric in metrics(before).items()
    }
    assert float(after["exact_match"].tuned) < float(metrics(before)["exact_match"].tuned)
    assert f"total_replies={metrics(before)['finished_rate'].cases}" in ended.log


def test_the_published_model_is_evaluated_on_the_same_rows(extended_run: TrainedRun, worse_run: TrainedRun):
    """Its metrics equal those of its own evaluation. Without a comparison the key differs."""
    alone = metrics(evaluated(extended_run))
    assert extended_run.run.prepared is not None
    rival = Rival(of=worse_run.train_key, prepare=extended_run.run.prepared.key, train=extended_run.train_key)
    with_rival = replace(worse_run, run=worse_run.run.model_copy(update={"rival": rival}))
    found = metrics(evaluated(with_rival))
    assert {name: metric.published for name, metric in found.items()} == {
        name: metric.tuned for name, metric in alone.items()
    }
    assert float(found["exact_match"].tuned) < float(found["exact_match"].published)
    assert all(metric.published == "" for metric in metrics(evaluated(worse_run)).values())


def test_a_missing_published_model_is_not_a_failure(extended_run: TrainedRun):
    """Nothing is compared, and only the gates decide."""
    assert extended_run.run.prepared is not None
    rival = Rival(of=extended_run.train_key, prepare=extended_run.run.prepared.key, train="0123456789abcdef")
    ended = replace(extended_run, run=extended_run.run.model_copy(update={"rival": rival})).stage(Stage.EVALUATE)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.evaluation is not None
    assert all(metric.published == "" for metric in ended.report.evaluation.metrics)
    assert "comparing with the base model only" in ended.log


def test_the_limits_of_rows_and_reply_length_are_in_the_key(extended_run: TrainedRun):
    """They are respected: three tokens finish no call."""
    run = extended_run.changed(evaluation={"maxRows": 5, "maxNewTokens": 3})
    facts = evaluated(run)
    assert facts.rows == 5
    assert metrics(facts)["valid_call_rate"].tuned in {"0.0000", ""}


def test_a_drained_pod_is_reported_as_interrupted(extended_run: TrainedRun):
    """SIGTERM during generation ends the stage within the grace period, and the next pod starts over."""
    run = extended_run.changed(evaluation={"maxNewTokens": 400})
    sent = []

    def drain(line: str) -> int | None:
        if "replies=" in line and not sent:
            sent.append(line)
            return signal.SIGTERM
        return None

    ended = run.stage(Stage.EVALUATE, watch=drain)
    assert ended.report is not None
    assert ended.report.failure is not None
    assert ended.report.failure.reason is Reason.INTERRUPTED
    assert ended.code == ExitCode.INTERRUPTED


def test_a_missing_train_output_is_reported(extended_run: TrainedRun):
    """The operator reruns train."""
    ended = extended_run.changed(training={"maxSteps": 77}).stage(Stage.EVALUATE)
    assert ended.report is not None
    assert ended.report.failure is not None
    assert ended.report.failure.reason is Reason.STAGE_OUTPUT_MISSING


@pytest.mark.long
@pytest.mark.learns
def test_a_base_model_with_tags_is_evaluated_with_them(seed: int, tmp_path: Path):
    """Reuse: no tokens are added, and the tuned model still makes calls."""
    with a_trained_run(tmp_path, Recipe("qwen3", ALL_TAGS).with_seed(seed)) as run:
        assert run.run.prepared is not None
        assert run.run.prepared.tokenizer_mode == "Reuse"
        found = metrics(evaluated(run))
        at_most("exact match of the base", found["exact_match"].base, 0.05)
        at_least("correct tool", found["tool_name_accuracy"].tuned, 0.5)

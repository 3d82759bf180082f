"""Suites: rows that are never trained on, evaluated with base and tuned model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from learn.figures import at_least, at_most
from learn.runs import TrainedRun
from tunemill_api import gates
from tunemill_api.evaluation import Gate
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import EvaluationFacts, PreparedFacts, SuiteFacts
from tunemill_dev.tiny import rows
from tunemill_trainer.judge.report import Report

OTHERS = 40
"""Rows of the suites with calls that are not in the training data."""


def put(run: TrainedRun, key: str, content: list[dict[str, Any]]) -> str:
    """Upload rows, and return their URI."""
    text = "".join(json.dumps(row) + "\n" for row in content)
    run.world.s3().put_object(Bucket=run.world.bucket, Key=key, Body=text.encode())
    return f"s3://{run.world.bucket}/{key}"


def succeeded(run: TrainedRun, stage: Stage) -> StageReport:
    """Run a stage, which has to succeed."""
    ended = run.stage(stage)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    return ended.report


def prepared(run: TrainedRun, suites: list[dict[str, Any]], gates: list[dict[str, Any]] | None = None) -> TrainedRun:
    """Return the run with suites, after prepare."""
    changed = run.changed(evaluation={"suites": suites, "gates": gates or []})
    facts = succeeded(changed, Stage.PREPARE).prepared
    return replace(changed, run=changed.run.model_copy(update={"prepared": facts}))


def facts_of(run: TrainedRun) -> PreparedFacts:
    """The facts of prepare."""
    assert run.run.prepared is not None
    return run.run.prepared


def evaluation(run: TrainedRun) -> EvaluationFacts:
    """Evaluate."""
    found = succeeded(run, Stage.EVALUATE).evaluation
    assert found is not None
    return found


def by_name(facts: EvaluationFacts) -> dict[str, SuiteFacts]:
    """The results of the suites."""
    return {suite.name: suite for suite in facts.suites}


@pytest.fixture(scope="module")
def with_suites(extended_run: TrainedRun) -> TrainedRun:
    """The trained run with a suite for each judge. The rows of one are in part training rows."""
    trained = rows(720, seed=11, offered=2, talk=0.2)
    others = rows(OTHERS, seed=5, offered=2, talk=0.2)
    chat = [
        {
            "messages": [
                {"role": "user", "content": row["messages"][1]["content"]},
                {"role": "assistant", "content": "ok"},
            ]
        }
        for row in others
    ]
    suites = [
        {"name": "own-calls", "uri": put(extended_run, "own.jsonl", [*others, *trained[:200]]), "judge": "Calls"},
        {"name": "own-answers", "uri": put(extended_run, "answers.jsonl", others), "judge": "Likelihood"},
        {
            "name": "chat",
            "uri": put(extended_run, "chat.jsonl", chat),
            "judge": "Pattern",
            "pattern": "(?s)^(?!.*<tool_call>)",
        },
    ]
    return prepared(
        extended_run,
        suites,
        [
            {"suite": "own-calls", "minGainOverBase": "0.2"},
            {"suite": "own-answers", "maxLossVsBase": "0"},
        ],
    )


@pytest.mark.learns
def test_each_judge_compares_base_and_tuned_model(with_suites: TrainedRun, extended_run: TrainedRun, tmp_path: Path):
    """The tuned model makes more right calls and has a lower loss; the model is trained once."""
    prepare = facts_of(with_suites)
    assert prepare.key == facts_of(extended_run).key
    assert with_suites.train_key == extended_run.train_key
    known = {suite.name: suite for suite in prepare.suites}
    assert known["own-calls"].trained_rows > 100, "three quarters of the first 200 rows are training rows"
    assert known["own-calls"].rows + known["own-calls"].trained_rows <= OTHERS + 200

    report = succeeded(with_suites, Stage.EVALUATE)
    assert report.evaluation is not None
    found = by_name(report.evaluation)
    at_least("right calls", float(found["own-calls"].tuned) - float(found["own-calls"].base), 0.2)
    at_most("loss of answers", float(found["own-answers"].tuned) - float(found["own-answers"].base), -0.1)
    assert found["chat"].base == "1.0000", "the base has never seen a call"
    for suite in found.values():
        assert float(suite.difference) == pytest.approx(float(suite.tuned) - float(suite.base))
        assert suite.rows == known[suite.name].rows
    decisions = gates.decide(with_suites.run.spec.evaluation.gates, report.evaluation)
    assert gates.passed(decisions), gates.missed(decisions)
    strict = Gate.model_validate({"suite": "own-answers", "minGainOverBase": "1"})
    assert len(gates.decide([strict], report.evaluation)) == 1

    with_suites.world.workspace().fetch(Stage.EVALUATE, report.key, tmp_path)
    assert Report.model_validate_json((tmp_path / "report.json").read_text()).suites == report.evaluation.suites
    assert "own-answers" in (tmp_path / "report.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "suite-cases.jsonl").open()]
    right = [line["tuned"]["right"] for line in lines if line["suite"] == "own-calls"]
    assert f"{sum(right) / len(right):.4f}" == found["own-calls"].tuned
    assert {line["suite"] for line in lines} == {"own-calls", "chat"}


def test_a_changed_suite_is_evaluated_again_without_training(with_suites: TrainedRun):
    """The base model's results on the other suites and on the held-out rows are reused."""
    before = evaluation(with_suites)
    again = succeeded(with_suites, Stage.PREPARE)
    assert not again.executed
    assert again.prepared == facts_of(with_suites)
    suites = [suite.model_dump(mode="json", by_alias=True) for suite in with_suites.run.spec.evaluation.suites]
    new = put(with_suites, "new.jsonl", rows(20, seed=6, offered=2, talk=0))
    changed = prepared(with_suites, [{**suites[0], "uri": new}, *suites[1:]])
    assert changed.train_key == with_suites.train_key
    ended = changed.stage(Stage.EVALUATE)
    assert ended.report is not None
    assert ended.report.evaluation is not None, ended.log
    after = ended.report.evaluation
    read = {suite.name: suite for suite in facts_of(changed).suites}["own-calls"]
    assert by_name(after)["own-calls"].rows == read.rows
    assert read.rows + read.trained_rows == 20
    assert [by_name(after)[name] for name in ("own-answers", "chat")] == [
        by_name(before)[name] for name in ("own-answers", "chat")
    ]
    assert after.metrics == before.metrics
    tuned = after.metrics[-2].cases + sum(suite.cases for suite in after.suites)
    assert f"total_replies={tuned + by_name(after)['own-calls'].cases}" in ended.log

"""Evaluation of gates."""

import pytest
from api.builders import a_spec, an_evaluation
from pydantic import ValidationError
from tunemill_api.evaluation import Evaluation, Gate
from tunemill_api.gates import decide, is_draft, is_not_better, passed
from tunemill_api.status import EvaluationFacts, FineTuneStatus, MetricFacts, SuiteFacts


@pytest.mark.parametrize(
    ("gate", "base", "tuned", "holds"),
    [
        ({"min": "0.9"}, "0.1000", "0.9000", True),
        ({"min": "0.9"}, "0.1000", "0.8999", False),
        ({"minGainOverBase": "0.05"}, "0.8500", "0.9000", True),
        ({"minGainOverBase": "0.05"}, "0.8501", "0.9000", False),
        ({"minGainOverBase": "0"}, "0.9000", "0.9000", True),
        ({"maxLossVsBase": "0.02"}, "0.9200", "0.9000", True),
        ({"maxLossVsBase": "0.02"}, "0.9201", "0.9000", False),
        ({"maxLossVsBase": "0.02"}, "0.1000", "0.9000", True),
        ({"min": "0.5", "minGainOverBase": "0.5"}, "0.8000", "0.9000", False),
    ],
)
def test_a_gate_compares_exactly_at_its_threshold(gate, base, tuned, holds):
    """Decimal arithmetic: 0.92 - 0.90 is 0.02, not a little more."""
    the_gate = Gate.model_validate({"metric": "exact_match"} | gate)
    decisions = decide([the_gate], an_evaluation("exact_match", base, tuned))
    assert passed(decisions) is holds


@pytest.mark.parametrize(
    ("gate", "base", "tuned", "holds", "text"),
    [
        ({"max": "0.02"}, "0.5000", "0.0200", True, "hallucinated_tool_rate <= 0.02"),
        ({"max": "0.02"}, "0.0000", "0.0201", False, "hallucinated_tool_rate <= 0.02"),
        ({"minGainOverBase": "0.05"}, "0.1000", "0.0500", True, "hallucinated_tool_rate <= base - 0.05"),
        ({"minGainOverBase": "0.05"}, "0.1000", "0.0501", False, "hallucinated_tool_rate <= base - 0.05"),
        ({"maxLossVsBase": "0.02"}, "0.0000", "0.0200", True, "hallucinated_tool_rate <= base + 0.02"),
        ({"maxLossVsBase": "0.02"}, "0.0000", "0.0201", False, "hallucinated_tool_rate <= base + 0.02"),
        ({"maxLossVsBase": "0.02"}, "0.9000", "0.0000", True, "hallucinated_tool_rate <= base + 0.02"),
    ],
)
def test_lower_is_better_for_error_metrics(gate, base, tuned, holds, text):
    """`max` is an upper bound; a gain is a decrease, a loss an increase."""
    the_gate = Gate.model_validate({"metric": "hallucinated_tool_rate"} | gate)
    (decision,) = decide([the_gate], an_evaluation("hallucinated_tool_rate", base, tuned))
    assert (decision.gate, decision.passed) == (text, holds)


@pytest.mark.parametrize(
    ("on_failure", "tuned", "draft"), [("Draft", "0.5", True), ("Draft", "0.9", False), ("Hold", "0.5", False)]
)
def test_a_draft_needs_a_missed_gate_and_the_draft_setting(on_failure, tuned, draft):
    """The operator and the publish stage use this rule."""
    evaluation = {"gates": [{"metric": "exact_match", "min": "0.9"}], "onGateFailure": on_failure}
    assert is_draft(Evaluation.model_validate(evaluation), an_evaluation("exact_match", "0.1", tuned)) is draft


@pytest.mark.parametrize(
    ("gate", "adapter", "holds"),
    [
        ({"maxLossVsAdapter": "0.02"}, "0.9200", True),
        ({"maxLossVsAdapter": "0.02"}, "0.9201", False),
        ({"minGainOverAdapter": "0"}, "0.9000", True),
        ({"minGainOverAdapter": "0.01"}, "0.9000", False),
        ({"maxLossVsAdapter": "0.5"}, "", False),
    ],
)
def test_a_gate_compares_with_the_start_adapter(gate, adapter, holds):
    """Without such an adapter the gate is missed."""
    metric = MetricFacts(name="exact_match", base="0.1000", tuned="0.9000", adapter=adapter, cases=50)
    the_gate = Gate.model_validate({"metric": "exact_match"} | gate)
    (decision,) = decide([the_gate], EvaluationFacts(rows=50, metrics=[metric]))
    assert decision.passed is holds
    assert "adapter" in decision.gate


def test_an_unmeasured_metric_passes_no_gate():
    """Without a held-out row that expects no call, abstention is unknown, and the reason says so."""
    gate = Gate.model_validate({"metric": "abstention_accuracy", "min": "0"})
    (decision,) = decide([gate], an_evaluation("exact_match"))
    assert not decision.passed
    assert "no held-out row measures abstention_accuracy" in decision.message


@pytest.mark.parametrize(
    ("judge", "gate", "base", "tuned", "holds", "text"),
    [
        ("Calls", {"min": "0.9"}, "0.1000", "0.9000", True, "suite own >= 0.9"),
        ("Pattern", {"maxLossVsBase": "0.02"}, "0.9200", "0.9000", True, "suite own >= base - 0.02"),
        ("Pattern", {"maxLossVsBase": "0.02"}, "0.9201", "0.9000", False, "suite own >= base - 0.02"),
        ("Likelihood", {"maxLossVsBase": "0.1"}, "2.5000", "2.6000", True, "suite own <= base + 0.1"),
        ("Likelihood", {"maxLossVsBase": "0.1"}, "2.5000", "2.6001", False, "suite own <= base + 0.1"),
        ("Likelihood", {"maxLossVsBase": "0.1"}, "12.5000", "2.6001", True, "suite own <= base + 0.1"),
        ("Likelihood", {"minGainOverBase": "0.1"}, "2.5000", "2.4000", True, "suite own <= base - 0.1"),
    ],
)
def test_a_gate_on_a_suite_follows_its_judge(judge, gate, base, tuned, holds, text):
    """For the loss, lower is better: the gate bounds an increase."""
    suite = SuiteFacts(name="own", judge=judge, base=base, tuned=tuned, difference="", rows=20, cases=22)
    evaluation = EvaluationFacts(rows=10, metrics=[], suites=[suite])
    (decision,) = decide([Gate.model_validate({"suite": "own"} | gate)], evaluation)
    assert (decision.gate, decision.passed) == (text, holds)
    assert decision.message == f"base {base}, tuned {tuned}, 22 cases"


def test_an_unevaluated_suite_passes_no_gate():
    """The defaults of a profile may have a gate on a suite that the object lacks."""
    (decision,) = decide([Gate.model_validate({"suite": "own", "min": "0"})], an_evaluation("exact_match"))
    assert not decision.passed
    assert "spec.evaluation.suites has no own" in decision.message


def test_a_status_has_room_for_the_decisions_on_all_gates():
    """With the maximum number of gates and of conditions per gate."""
    most = 16
    with pytest.raises(ValidationError):
        Evaluation.model_validate({"gates": [{"metric": "exact_match", "min": "1"}] * (most + 1)})
    gate = {"metric": "exact_match", "min": "1", "minGainOverBase": "1", "maxLossVsBase": "0"}
    gates = Evaluation.model_validate({"gates": [gate] * most}).gates
    assert len(FineTuneStatus(gates=decide(gates, an_evaluation())).gates) == 3 * most


def test_without_gates_every_model_passes():
    """The list of gates is empty."""
    assert passed(decide([], an_evaluation()))


@pytest.mark.parametrize(
    ("promote", "tuned", "published", "stays"),
    [
        ("IfBetter", "0.7200", "0.7300", True),
        ("IfBetter", "0.7300", "0.7300", True),
        ("IfBetter", "0.7301", "0.7300", False),
        ("IfBetter", "0.7200", "", False),
        ("Always", "0.1000", "0.7300", False),
    ],
)
def test_only_more_exact_matches_than_the_published_model_are_better(promote, tuned, published, stays):
    """An equal number is not better. Without a comparison only the gates decide."""
    exact = MetricFacts(name="exact_match", base="0.1", tuned=tuned, published=published, cases=10)
    spec = a_spec(retrain={"schedule": "0 2 * * 0", "promote": promote})
    why = is_not_better(spec, EvaluationFacts(rows=10, metrics=[exact]))
    assert bool(why) is stays
    assert not stays or f"{tuned} against {published} on the same 10 held-out rows" in why
    assert is_not_better(a_spec(), EvaluationFacts(rows=10, metrics=[exact])) == ""

"""How gates are decided."""

import pytest
from api.builders import an_evaluation
from tunemill_api.finetune import Gate
from tunemill_api.gates import decide, passed


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
def test_a_gate_compares_exactly_at_its_border(gate, base, tuned, holds):
    """Decimal arithmetic: 0.92 - 0.90 is 0.02, not a little more."""
    the_gate = Gate.model_validate({"metric": "exact_match"} | gate)
    decisions = decide([the_gate], an_evaluation("exact_match", base, tuned))
    assert passed(decisions) is holds


def test_a_metric_that_nothing_measured_passes_no_gate():
    """Without a held-out row that needs no call, abstention is unknown, and the gate says so."""
    gate = Gate.model_validate({"metric": "abstention_accuracy", "min": "0"})
    (decision,) = decide([gate], an_evaluation("exact_match"))
    assert not decision.passed
    assert "no held-out row measures abstention_accuracy" in decision.message


def test_without_gates_everything_passes():
    """An empty list of gates asks for nothing."""
    assert passed(decide([], an_evaluation()))

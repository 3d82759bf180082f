"""Decides whether the measured metrics pass the gates.

Pure, so that the operator re-decides without a pod when a gate is edited.
"""

from collections.abc import Sequence
from decimal import Decimal

from tunemill_api.finetune import Gate
from tunemill_api.status import EvaluationFacts, GateFacts


def decide(gates: Sequence[Gate], evaluation: EvaluationFacts) -> list[GateFacts]:
    """Return one decision a gate condition, in the order of the gates.

    A metric that no held-out row asks for (abstention without a row that needs no call) was not measured: its gate is
    not passed, because nobody could promise what it asks for.
    """
    return [decision for gate in gates for decision in _decide(gate, evaluation)]


def passed(decisions: Sequence[GateFacts]) -> bool:
    """Return whether all gates are passed."""
    return all(decision.passed for decision in decisions)


def _decide(gate: Gate, evaluation: EvaluationFacts) -> list[GateFacts]:
    name = gate.metric.value
    measured = next((metric for metric in evaluation.metrics if metric.name == name and metric.tuned), None)
    conditions = []
    if gate.min is not None:
        conditions.append(
            (f"{name} >= {gate.min}", None if measured is None else Decimal(measured.tuned) >= Decimal(gate.min))
        )
    if gate.min_gain_over_base is not None:
        text = f"{name} >= base + {gate.min_gain_over_base}"
        least = Decimal(gate.min_gain_over_base)
        conditions.append(
            (text, None if measured is None else Decimal(measured.tuned) - Decimal(measured.base) >= least)
        )
    if gate.max_loss_vs_base is not None:
        text = f"{name} >= base - {gate.max_loss_vs_base}"
        most = Decimal(gate.max_loss_vs_base)
        conditions.append(
            (text, None if measured is None else Decimal(measured.base) - Decimal(measured.tuned) <= most)
        )
    if measured is None:
        return [
            GateFacts(gate=text, passed=False, message=f"no held-out row measures {name}") for text, _ in conditions
        ]
    figures = f"base {measured.base}, tuned {measured.tuned}, {measured.cases} cases"
    return [GateFacts(gate=text, passed=bool(holds), message=figures) for text, holds in conditions]

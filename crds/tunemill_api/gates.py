"""Decides whether the measured metrics pass the gates, and what becomes of a model that does not pass them.

Pure, so that the operator re-decides without a pod when a gate is edited.
"""

from collections.abc import Sequence
from decimal import Decimal

from tunemill_api.evaluation import LOWER_IS_BETTER, Evaluation, Gate, Metric, OnGateFailure
from tunemill_api.finetune import FineTuneSpec, Promote
from tunemill_api.status import EvaluationFacts, GateFacts, MetricFacts


def decide(gates: Sequence[Gate], evaluation: EvaluationFacts) -> list[GateFacts]:
    """Return one decision a gate condition, in the order of the gates.

    A metric that no held-out row asks for (abstention without a row that needs no call) was not measured: its gate is
    not passed, because nobody could promise what it asks for.
    """
    return [decision for gate in gates for decision in _decide(gate, evaluation)]


def passed(decisions: Sequence[GateFacts]) -> bool:
    """Return whether all gates are passed."""
    return all(decision.passed for decision in decisions)


def missed(decisions: Sequence[GateFacts]) -> str:
    """Return in words which gates are not passed, and by which figures."""
    return "; ".join(f"{decision.gate} ({decision.message})" for decision in decisions if not decision.passed)


def is_draft(settings: Evaluation, evaluation: EvaluationFacts) -> bool:
    """Return whether what was evaluated is pushed as a draft and not published."""
    wished = settings.on_gate_failure is OnGateFailure.DRAFT
    return wished and not passed(decide(settings.gates, evaluation))


def is_not_better(spec: FineTuneSpec, evaluation: EvaluationFacts) -> str:
    """Return in words why what was evaluated does not take the place of the published model; empty when it does."""
    if spec.retrain is None or spec.retrain.promote is not Promote.IF_BETTER:
        return ""
    exact = next((metric for metric in evaluation.metrics if metric.name == Metric.EXACT_MATCH), None)
    if exact is None or not exact.published or (exact.tuned and Decimal(exact.tuned) > Decimal(exact.published)):
        return ""
    figures = f"exact_match {exact.tuned} against {exact.published} on the same {evaluation.rows} held-out rows"
    return f"the published model stays: {figures}"


def _decide(gate: Gate, evaluation: EvaluationFacts) -> list[GateFacts]:
    name = gate.metric.value
    measured = next((each for each in evaluation.metrics if each.name == name and each.tuned and each.base), None)
    if measured is None:
        return [
            GateFacts(gate=text, passed=False, message=f"no held-out row measures {name}")
            for text in _conditions(gate, MetricFacts(name=name, base="0", tuned="0"))
        ]
    figures = f"base {measured.base}, tuned {measured.tuned}, {measured.cases} cases"
    return [GateFacts(gate=text, passed=holds, message=figures) for text, holds in _conditions(gate, measured).items()]


def _conditions(gate: Gate, measured: MetricFacts) -> dict[str, bool]:
    """Return the gate's conditions in words, and whether each holds."""
    name, base, tuned = gate.metric.value, Decimal(measured.base), Decimal(measured.tuned)
    # Of a metric that counts mistakes, a gain is that there are fewer.
    fewer = gate.metric in LOWER_IS_BETTER
    sign, better, worse, reaches = (-1, "-", "+", "<=") if fewer else (1, "+", "-", ">=")
    gain = sign * (tuned - base)
    conditions = {}
    if gate.min is not None:
        conditions[f"{name} >= {gate.min}"] = tuned >= Decimal(gate.min)
    if gate.max is not None:
        conditions[f"{name} <= {gate.max}"] = tuned <= Decimal(gate.max)
    if gate.min_gain_over_base is not None:
        conditions[f"{name} {reaches} base {better} {gate.min_gain_over_base}"] = gain >= Decimal(
            gate.min_gain_over_base
        )
    if gate.max_loss_vs_base is not None:
        conditions[f"{name} {reaches} base {worse} {gate.max_loss_vs_base}"] = -gain <= Decimal(gate.max_loss_vs_base)
    return conditions

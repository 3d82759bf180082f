"""Evaluates the gates, and decides whether a model is published, kept as a draft or held.

The functions are pure, so the operator can evaluate edited gates again without a pod.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from tunemill_api.evaluation import LOWER_IS_BETTER, Evaluation, Gate, Judge, Metric, OnGateFailure
from tunemill_api.finetune import FineTuneSpec, Promote
from tunemill_api.status import EvaluationFacts, GateFacts


def decide(gates: Sequence[Gate], evaluation: EvaluationFacts) -> list[GateFacts]:
    """Return one result per condition, in the order of the gates.

    If no held-out row measures a metric (for example abstention, if every row needs a call), its gate is not passed.
    Neither is a gate on a suite that was not evaluated.
    """
    return [decision for gate in gates for decision in _decide(gate, evaluation)]


def passed(decisions: Sequence[GateFacts]) -> bool:
    """Return whether all gates are passed."""
    return all(decision.passed for decision in decisions)


def missed(decisions: Sequence[GateFacts]) -> str:
    """Return a text with the gates that are not passed and their values."""
    return "; ".join(f"{decision.gate} ({decision.message})" for decision in decisions if not decision.passed)


def is_draft(settings: Evaluation, evaluation: EvaluationFacts) -> bool:
    """Return whether the model is pushed as a draft instead of published."""
    as_draft = settings.on_gate_failure is OnGateFailure.DRAFT
    return as_draft and not passed(decide(settings.gates, evaluation))


def is_not_better(spec: FineTuneSpec, evaluation: EvaluationFacts) -> str:
    """Return a text that explains why the model does not replace the published one. Empty if it does."""
    if spec.retrain is None or spec.retrain.promote is not Promote.IF_BETTER:
        return ""
    exact = next((metric for metric in evaluation.metrics if metric.name == Metric.EXACT_MATCH), None)
    if exact is None or not exact.published or (exact.tuned and Decimal(exact.tuned) > Decimal(exact.published)):
        return ""
    figures = f"exact_match {exact.tuned} against {exact.published} on the same {evaluation.rows} held-out rows"
    return f"the new model is not better, the published model stays: {figures}"


def _decide(gate: Gate, evaluation: EvaluationFacts) -> list[GateFacts]:
    measured, missing = _measured(gate, evaluation)
    if measured is None:
        unknown = _Measured("0", "0", 0, gate.metric in LOWER_IS_BETTER)
        return [GateFacts(gate=text, passed=False, message=missing) for text in _conditions(gate, unknown)]
    adapter = f"adapter {measured.adapter}, " if measured.adapter else ""
    figures = f"base {measured.base}, {adapter}tuned {measured.tuned}, {measured.cases} cases"
    return [GateFacts(gate=text, passed=holds, message=figures) for text, holds in _conditions(gate, measured).items()]


@dataclass(frozen=True)
class _Measured:
    """The figures that a gate is about."""

    base: str
    tuned: str
    cases: int
    lower_is_better: bool = False
    adapter: str = ""
    """The figure of the adapter of spec.baseModel.adapter. Empty if there is none."""


def _measured(gate: Gate, evaluation: EvaluationFacts) -> tuple[_Measured | None, str]:
    """Return the figures, or why there are none."""
    if gate.metric is None:
        suite = next((each for each in evaluation.suites if each.name == gate.suite), None)
        if suite is None:
            return None, f"spec.evaluation.suites has no {gate.suite}"
        return _Measured(suite.base, suite.tuned, suite.cases, suite.judge is Judge.LIKELIHOOD), ""
    name = gate.metric.value
    metric = next((each for each in evaluation.metrics if each.name == name and each.tuned and each.base), None)
    if metric is None:
        return None, f"no held-out row measures {name}"
    lower = gate.metric in LOWER_IS_BETTER
    return _Measured(metric.base, metric.tuned, metric.cases, lower, metric.adapter), ""


def _conditions(gate: Gate, measured: _Measured) -> dict[str, bool]:
    """Return the gate's conditions as text, with whether each is met."""
    name, tuned = gate.subject, Decimal(measured.tuned)
    # If lower is better, a gain is a decrease.
    sign, better, worse, reaches = (-1, "-", "+", "<=") if measured.lower_is_better else (1, "+", "-", ">=")
    conditions = {}
    if gate.min is not None:
        conditions[f"{name} >= {gate.min}"] = tuned >= Decimal(gate.min)
    if gate.max is not None:
        conditions[f"{name} <= {gate.max}"] = tuned <= Decimal(gate.max)
    for other, value, min_gain, max_loss in (
        ("base", measured.base, gate.min_gain_over_base, gate.max_loss_vs_base),
        ("adapter", measured.adapter, gate.min_gain_over_adapter, gate.max_loss_vs_adapter),
    ):
        # Without a value, for example of an adapter that is not given, the condition is not met.
        gain = sign * (tuned - Decimal(value)) if value else None
        if min_gain is not None:
            conditions[f"{name} {reaches} {other} {better} {min_gain}"] = gain is not None and gain >= Decimal(min_gain)
        if max_loss is not None:
            conditions[f"{name} {reaches} {other} {worse} {max_loss}"] = gain is not None and -gain <= Decimal(max_loss)
    return conditions

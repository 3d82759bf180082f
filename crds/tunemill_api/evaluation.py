"""Metrics, gates, and the comparison of the base model with the tuned model."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import Difference, Fraction, rule, rules


class Metric(StrEnum):
    """Metrics on which a gate can be set.

    Each is a fraction from 0 to 1, measured on the held-out rows. For the metrics in LOWER_IS_BETTER, lower is better.
    """

    TOOL_NAME_ACCURACY = "tool_name_accuracy"
    EXACT_MATCH = "exact_match"
    AST_MATCH = "ast_match"
    VALID_CALL_RATE = "valid_call_rate"
    SCHEMA_VALID_RATE = "schema_valid_rate"
    PARALLEL_ACCURACY = "parallel_accuracy"
    ABSTENTION_ACCURACY = "abstention_accuracy"
    TOOL_F1 = "tool_f1"
    MISSED_CALL_RATE = "missed_call_rate"
    OVER_CALL_RATE = "over_call_rate"
    HALLUCINATED_TOOL_RATE = "hallucinated_tool_rate"


LOWER_IS_BETTER = frozenset({Metric.MISSED_CALL_RATE, Metric.OVER_CALL_RATE, Metric.HALLUCINATED_TOOL_RATE})
"""The metrics that count mistakes."""

MAX_GATES = 16
"""Maximum number of gates in a spec."""

_COUNTS_MISTAKES = f"self.metric in {sorted(metric.value for metric in LOWER_IS_BETTER)}"


class Gate(ApiModel):
    """A condition on one metric of the tuned model."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "has(self.min) || has(self.max) || has(self.minGainOverBase) || has(self.maxLossVsBase) || "
                "has(self.minGainOverAdapter) || has(self.maxLossVsAdapter)",
                "a gate needs at least one of min, max, minGainOverBase, maxLossVsBase, minGainOverAdapter and "
                "maxLossVsAdapter",
            ),
            rule(
                f"!has(self.min) || !({_COUNTS_MISTAKES})",
                "a gate on a metric that counts mistakes needs max instead of min: lower is better",
            ),
            rule(
                f"!has(self.max) || {_COUNTS_MISTAKES}",
                "a gate can have max only on missed_call_rate, over_call_rate and hallucinated_tool_rate: for the "
                "other metrics, higher is better",
            ),
        )
    }

    metric: Metric
    """The metric."""
    min: Fraction | None = None
    """Minimum value for the tuned model."""
    max: Fraction | None = None
    """Maximum value for the tuned model. Only for missed_call_rate, over_call_rate and hallucinated_tool_rate."""
    min_gain_over_base: Difference | None = None
    """Minimum improvement of the tuned model over the base model."""
    max_loss_vs_base: Fraction | None = None
    """Maximum amount by which the tuned model may be worse than the base model."""
    min_gain_over_adapter: Difference | None = None
    """Minimum improvement of the tuned model over the adapter of spec.baseModel.adapter."""
    max_loss_vs_adapter: Fraction | None = None
    """Maximum amount by which the tuned model may be worse than the adapter of spec.baseModel.adapter."""


class OnGateFailure(StrEnum):
    """What to do if a gate is not passed."""

    HOLD = "Hold"
    DRAFT = "Draft"
    FAIL = "Fail"


class Evaluation(ApiModel):
    """How the base model and the tuned model are compared, and which gates must be passed before publishing."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Maximum number of held-out rows that are evaluated."""
    max_new_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Maximum number of tokens in a reply. 0: enough for the longest held-out answer."""
    gates: Annotated[
        list[Gate], Field(max_length=MAX_GATES, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = [Gate(metric=Metric.EXACT_MATCH, min_gain_over_base="0")]
    """Gates that must all be passed before the model is published. Default: not worse than the base model."""
    on_gate_failure: OnGateFailure = OnGateFailure.HOLD
    """What to do if a gate is not passed. Hold: keep the outputs and wait for an edit of the gates. Draft: as Hold, and
    push the model to the branch tunemill-draft-KEY of spec.publish.repository for review, never to spec.publish.branch
    and without a tag; a repository that is created for it is private. Fail: the run fails."""

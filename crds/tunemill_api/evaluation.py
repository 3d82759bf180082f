"""What counts as good enough: metrics, gates and how base and tuned model are compared."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import Difference, Fraction, rule, rules


class Metric(StrEnum):
    """What gates can be set on.

    All are shares from 0 to 1, measured on the held-out rows; of those in LOWER_IS_BETTER less is better.
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
"""The most gates of a spec."""

_COUNTS_MISTAKES = f"self.metric in {sorted(metric.value for metric in LOWER_IS_BETTER)}"


class Gate(ApiModel):
    """A condition on one metric of the tuned model."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "has(self.min) || has(self.max) || has(self.minGainOverBase) || has(self.maxLossVsBase)",
                "a gate needs at least one of min, max, minGainOverBase and maxLossVsBase",
            ),
            rule(
                f"!has(self.min) || !({_COUNTS_MISTAKES})",
                "a gate on a metric that counts mistakes needs max in place of min: less is better",
            ),
            rule(
                f"!has(self.max) || {_COUNTS_MISTAKES}",
                "a gate can have max only on missed_call_rate, over_call_rate and hallucinated_tool_rate: of the "
                "other metrics more is better",
            ),
        )
    }

    metric: Metric
    """What is measured."""
    min: Fraction | None = None
    """The tuned model must reach this."""
    max: Fraction | None = None
    """The tuned model must not be above this; for missed_call_rate, over_call_rate and hallucinated_tool_rate."""
    min_gain_over_base: Difference | None = None
    """The tuned model must be better than the base model by this much."""
    max_loss_vs_base: Fraction | None = None
    """The tuned model may be worse than the base model by this much at most."""


class OnGateFailure(StrEnum):
    """What to do when a gate is not passed."""

    HOLD = "Hold"
    DRAFT = "Draft"
    FAIL = "Fail"


class Evaluation(ApiModel):
    """How base and tuned model are compared, and what the tuned one must reach to be published."""

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """How many held-out rows are judged at most."""
    max_new_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Tokens that a reply may have; 0 means enough for the longest held-out answer."""
    gates: Annotated[
        list[Gate], Field(max_length=MAX_GATES, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = [Gate(metric=Metric.EXACT_MATCH, min_gain_over_base="0")]
    """All must be passed before anything is published. Default: not worse than the base model."""
    on_gate_failure: OnGateFailure = OnGateFailure.HOLD
    """Hold: keep the result and wait for a change of the gates. Draft: do so, and push it to the branch
    tunemill-draft-KEY of spec.publish.repository for people to look at, never to spec.publish.branch and without a tag;
    a repository that must be created for it is private. Fail: end the run as failed."""

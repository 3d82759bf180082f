"""Metrics, suites, gates, and the comparison of the base model with the tuned model."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.data import DatasetFormat
from tunemill_api.scalars import DataUri, Difference, Fraction, rule, rules


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
MAX_SUITES = 8
"""Maximum number of suites in a spec. Their results must fit into the termination message of a pod."""


class Judge(StrEnum):
    """How the replies to a suite, or the suite's own answers, become one figure for each model."""

    CALLS = "Calls"
    LIKELIHOOD = "Likelihood"
    PATTERN = "Pattern"


SuiteName = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""The name of a suite. It has no underscore, so no metric has the same name."""


class Suite(ApiModel):
    """A further data set for the evaluation, for example general chat that the model must not forget."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                f"(self.judge == '{Judge.PATTERN}') == (has(self.pattern) && self.pattern != '')",
                "a suite has a pattern if its judge is Pattern, and only then",
            )
        )
    }

    name: SuiteName
    """Name in the gates, the status, the report and the model card. It is published."""
    uri: DataUri
    """Location of the rows. It has the form of dataset.uri and is read with the same credentials. Rows with the prompt
    of a training or validation row are left out, so that no row is judged that the model was trained on."""
    format: DatasetFormat = DatasetFormat.AUTO
    """Format of the rows, as dataset.format."""
    judge: Judge
    """How the models are judged. Calls: the fraction of the replies with exactly the expected calls, or without a call
    if none is expected. Likelihood: the mean loss of the rows' own answers, in nats per token; lower is better.
    Pattern: the fraction of the replies in which the pattern is found."""
    pattern: Annotated[str, Field(max_length=1024)] = ""
    """Regular expression of Python for the judge Pattern, for example (?i)\\bcelsius\\b. It is searched in the whole
    reply, without the token that ends it."""


_COUNTS_MISTAKES = f"self.metric in {sorted(metric.value for metric in LOWER_IS_BETTER)}"


class Gate(ApiModel):
    """A condition on one metric of the tuned model, or on its result of one suite."""

    model_config = {
        "json_schema_extra": rules(
            rule("has(self.metric) != has(self.suite)", "a gate needs either a metric or a suite"),
            rule(
                "has(self.min) || has(self.max) || has(self.minGainOverBase) || has(self.maxLossVsBase) || "
                "has(self.minGainOverAdapter) || has(self.maxLossVsAdapter)",
                "a gate needs at least one of min, max, minGainOverBase, maxLossVsBase, minGainOverAdapter and "
                "maxLossVsAdapter",
            ),
            rule(
                "!has(self.suite) || !(has(self.minGainOverAdapter) || has(self.maxLossVsAdapter))",
                "a gate on a suite cannot have minGainOverAdapter or maxLossVsAdapter: suites compare with the base "
                "model only",
            ),
            rule(
                f"!has(self.min) || !has(self.metric) || !({_COUNTS_MISTAKES})",
                "a gate on a metric that counts mistakes needs max instead of min: lower is better",
            ),
            rule(
                f"!has(self.max) || (has(self.metric) && {_COUNTS_MISTAKES})",
                "a gate can have max only on missed_call_rate, over_call_rate and hallucinated_tool_rate: for the "
                "other metrics, higher is better",
            ),
        )
    }

    metric: Metric | None = None
    """The metric. Absent in a gate on a suite."""
    suite: SuiteName | None = None
    """Name of a suite in evaluation.suites, in place of a metric."""
    min: Fraction | None = None
    """Minimum value for the tuned model. Not for suites with the judge Likelihood."""
    max: Fraction | None = None
    """Maximum value for the tuned model. Only for missed_call_rate, over_call_rate and hallucinated_tool_rate."""
    min_gain_over_base: Difference | None = None
    """Minimum improvement of the tuned model over the base model."""
    max_loss_vs_base: Fraction | None = None
    """Maximum amount by which the tuned model may be worse than the base model. For suites with the judge Likelihood,
    the maximum increase of the loss."""
    min_gain_over_adapter: Difference | None = None
    """Minimum improvement of the tuned model over the adapter of spec.baseModel.adapter."""
    max_loss_vs_adapter: Fraction | None = None
    """Maximum amount by which the tuned model may be worse than the adapter of spec.baseModel.adapter."""

    @property
    def subject(self) -> str:
        """What the gate is about: the name of the metric, or the word suite and the name of the suite."""
        return self.metric.value if self.metric is not None else f"suite {self.suite}"


class OnGateFailure(StrEnum):
    """What to do if a gate is not passed."""

    HOLD = "Hold"
    DRAFT = "Draft"
    FAIL = "Fail"


class Evaluation(ApiModel):
    """How the base model and the tuned model are compared, and which gates must be passed before publishing."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.gates) || self.gates.all(gate, !has(gate.suite) || "
                "(has(self.suites) && self.suites.exists(suite, suite.name == gate.suite)))",
                "a gate names a suite that is not in evaluation.suites",
            ),
            rule(
                "!has(self.gates) || !has(self.suites) || self.gates.all(gate, !has(gate.suite) || !has(gate.min) || "
                f"!self.suites.exists(suite, suite.name == gate.suite && suite.judge == '{Judge.LIKELIHOOD}'))",
                "a gate on a suite with the judge Likelihood needs maxLossVsBase or minGainOverBase instead of min: "
                "lower is better",
            ),
        )
    }

    max_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    """Maximum number of held-out rows that are evaluated, and of rows of each suite."""
    max_new_tokens: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Maximum number of tokens in a reply. 0: enough for the longest held-out answer, or the longest answer of the
    suite."""
    suites: Annotated[
        list[Suite],
        Field(
            max_length=MAX_SUITES,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    """Further data sets on which base and tuned model are compared. They are never trained on."""
    gates: Annotated[
        list[Gate], Field(max_length=MAX_GATES, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = [Gate(metric=Metric.EXACT_MATCH, min_gain_over_base="0")]
    """Gates that must all be passed before the model is published. Default: not worse than the base model."""
    on_gate_failure: OnGateFailure = OnGateFailure.HOLD
    """What to do if a gate is not passed. Hold: keep the outputs and wait for an edit of the gates. Draft: as Hold, and
    push the model to the branch tunemill-draft-KEY of spec.publish.repository for review, never to spec.publish.branch
    and without a tag; a repository that is created for it is private. Fail: the run fails."""

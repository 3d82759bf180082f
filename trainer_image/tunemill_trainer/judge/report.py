"""The report.json of evaluate. publish reads it for the model card and the report page."""

from pydantic import Field, JsonValue
from tunemill_api.base import ApiModel
from tunemill_api.status import SuiteFacts

REPORT_FILE = "report.json"
CASES_FILE = "cases.jsonl"
SUITE_CASES_FILE = "suite-cases.jsonl"
"""The replies to the suites, except those with the judge Likelihood, for which there are none."""


class Settings(ApiModel):
    """The generation settings, the same for both models."""

    max_rows: int
    """The maximum number of rows."""
    max_new_tokens: int
    """The token limit of a reply."""
    decoding: str = "greedy"
    """The decoding strategy."""
    precision: str
    """The data type of weights and computation."""
    device: str
    """The device."""
    adapter: str = "unmerged"
    """How the tuned model was loaded: merged, unmerged or whole model, and why."""
    reply_format: str = "hermes"
    """The call format, as the name of vLLM's parser."""


class Share(ApiModel):
    """A share of the cases with its 95 % Wilson interval."""

    hits: int
    """The number of hits."""
    share: float
    """hits / cases."""
    low: float
    """The lower bound of the interval."""
    high: float
    """The upper bound of the interval."""


class MetricReport(ApiModel):
    """One metric of both models; without shares if it applies to no case."""

    cases: int
    """The number of cases that the metric applies to."""
    base: Share | None
    """The base model's share."""
    tuned: Share | None
    """The tuned model's share."""


class Calls(ApiModel):
    """One model's calls to one tool."""

    made: int
    """Calls in the replies."""
    named: int = 0
    """Expected calls that were made with any arguments."""
    exact: int
    """Expected calls that were made with equal arguments."""
    precision: float | None = None
    """named / made; None if none was made."""
    recall: float | None = None
    """named / wanted; None if none was expected."""
    f1: float | None = None
    """The harmonic mean of both, 2 named / (made + wanted)."""


class ToolReport(ApiModel):
    """One tool."""

    wanted: int
    """Expected calls."""
    base: Calls
    """The base model's calls."""
    tuned: Calls
    """The tuned model's calls."""


class Right(ApiModel):
    """The number of cases that each model gets right: an exact match, or no call if none is expected."""

    base: int
    """The base model's right cases."""
    tuned: int
    """The tuned model's right cases."""
    p_value: float
    """The p-value of McNemar's exact test: the probability of such a difference if both models are equally good."""


class Attempt(ApiModel):
    """One model's reply to one case."""

    text: str
    """The decoded reply, truncated if it is very long."""
    fault: str = ""
    """The kind of fault; empty if the reply is right."""
    error: str = ""
    """The fault as a message; empty if there is none."""


class Mistake(ApiModel):
    """A case that the tuned model got wrong, with the details to see why."""

    id: str
    """The id of the case, for example calls.jsonl:17#1."""
    request: str
    """The last message before the reply, truncated if it is very long."""
    expected: list[JsonValue]
    """The expected calls, each an object with name and arguments; empty if none is expected."""
    expected_text: str
    """The expected text of the assistant turn, without calls, truncated if it is very long."""
    got: list[JsonValue]
    """The calls that a client of the tuned model would receive."""
    base: Attempt
    """The base model's reply."""
    tuned: Attempt
    """The tuned model's reply."""


Confusion = dict[str, dict[str, int]]
"""Expected tool → called tool → number of calls. <none>, <invalid> and <hallucinated> are not tools."""


class Report(ApiModel):
    """All results of the evaluation."""

    rows: int
    """The number of held-out rows."""
    cases: int
    """The number of assistant turns in them."""
    settings: Settings
    """The generation settings."""
    metrics: dict[str, MetricReport]
    """Metrics by name, the most important first."""
    right: Right
    """The number of right cases of both models, with a significance test."""
    tools: dict[str, ToolReport]
    """Results by tool."""
    base_confusion: Confusion
    """The base model's confusion table."""
    tuned_confusion: Confusion
    """The tuned model's confusion table."""
    base_tool_f1: float | None = None
    """The base model's macro average F1 over all tools that were expected or called."""
    tuned_tool_f1: float | None = None
    """The tuned model's macro average F1."""
    slices: dict[str, dict[str, MetricReport]] = Field(default={})
    """Slice → metric → results for a subset of the cases, without empty subsets and metrics that do not apply. The
    slices are no_call, single_call, multi_call, multi_turn and unseen_tools."""
    suites: list[SuiteFacts] = Field(default=[])
    """Results on the suites."""
    base_faults: dict[str, int] = Field(default={})
    """The base model's number of cases by fault, most frequent first."""
    tuned_faults: dict[str, int] = Field(default={})
    """The tuned model's number of cases by fault, most frequent first."""
    mistakes: list[Mistake] = Field(default=[])
    """Cases that the tuned model got wrong: the first ones of each fault, at most 60."""

"""report.json of evaluate: written by it, read by publish for the model card and the report page."""

from pydantic import Field, JsonValue
from tunemill_api.base import ApiModel

REPORT_FILE = "report.json"
CASES_FILE = "cases.jsonl"


class Settings(ApiModel):
    """How the replies were made; the same for both models."""

    max_rows: int
    """The most rows that were wanted."""
    max_new_tokens: int
    """Tokens that a reply could have."""
    decoding: str = "greedy"
    """How the next token was chosen."""
    precision: str
    """The number format of weights and computation."""
    device: str
    """Where it was computed."""
    adapter: str = "unmerged"
    """How the tuned model decoded: merged, unmerged or whole model, and why."""
    reply_format: str = "hermes"
    """How calls were read, with the name of vLLM's parser."""


class Share(ApiModel):
    """A share of the cases with its Wilson interval of 95 %."""

    hits: int
    """Cases that count."""
    share: float
    """hits / cases."""
    low: float
    """The lower bound."""
    high: float
    """The upper bound."""


class MetricReport(ApiModel):
    """One metric of both models; without shares when no case asks for it."""

    cases: int
    """The cases that ask for it."""
    base: Share | None
    """Of the base model."""
    tuned: Share | None
    """Of the tuned model."""


class Calls(ApiModel):
    """One model's calls of one tool."""

    made: int
    """Calls that were made."""
    named: int = 0
    """Wanted calls that were made, whatever their arguments."""
    exact: int
    """Wanted calls that were made with equal arguments."""
    precision: float | None = None
    """named / made; None when none was made."""
    recall: float | None = None
    """named / wanted; None when none was wanted."""
    f1: float | None = None
    """The harmonic mean of both, 2 named / (made + wanted)."""


class ToolReport(ApiModel):
    """One tool."""

    wanted: int
    """Calls that were wanted."""
    base: Calls
    """Of the base model."""
    tuned: Calls
    """Of the tuned model."""


class Right(ApiModel):
    """The cases that each model has right: equal calls, or none where none is wanted."""

    base: int
    """Of the base model."""
    tuned: int
    """Of the tuned model."""
    p_value: float
    """Of McNemar's exact test: how likely so uneven a change is when both are equally good."""


class Attempt(ApiModel):
    """What one model said to one case."""

    text: str
    """The reply as it was decoded, cut when it is very long."""
    fault: str = ""
    """One word of the faults; empty when the reply is right."""
    error: str = ""
    """What is wrong, in a sentence; empty when nothing is."""


class Mistake(ApiModel):
    """A case that the tuned model got wrong, with everything that is needed to see why."""

    id: str
    """The case, for example calls.jsonl:17#1."""
    request: str
    """What was said last before the reply, cut when it is very long."""
    expected: list[JsonValue]
    """The calls that were wanted, each an object with name and arguments; empty when none was."""
    expected_text: str
    """What the assistant says beside its calls in the data, cut when it is very long."""
    got: list[JsonValue]
    """The calls that a client of the tuned model would get."""
    base: Attempt
    """The base model's reply."""
    tuned: Attempt
    """The tuned model's reply."""


Confusion = dict[str, dict[str, int]]
"""Wanted tool → called tool → calls. What is no tool is in angle brackets: <none>, <invalid>, <hallucinated>."""


class Report(ApiModel):
    """All figures of the evaluation."""

    rows: int
    """Held-out rows."""
    cases: int
    """Turns of the assistant in them."""
    settings: Settings
    """How the replies were made."""
    metrics: dict[str, MetricReport]
    """By name, in the order in which people want to read them."""
    right: Right
    """Case by case."""
    tools: dict[str, ToolReport]
    """By name."""
    base_confusion: Confusion
    """Of the base model."""
    tuned_confusion: Confusion
    """Of the tuned model."""
    base_tool_f1: float | None = None
    """The mean F1 of all tools that were wanted or called; of the base model."""
    tuned_tool_f1: float | None = None
    """Of the tuned model."""
    slices: dict[str, dict[str, MetricReport]] = Field(default={})
    """Slice → metric → figures, of the cases that share a trait; only slices with cases and metrics that they ask for.
    The names: no_call, single_call, multi_call, multi_turn, unseen_tools."""
    base_faults: dict[str, int] = Field(default={})
    """Fault → cases, most frequent first; of the base model."""
    tuned_faults: dict[str, int] = Field(default={})
    """Of the tuned model."""
    mistakes: list[Mistake] = Field(default=[])
    """Cases that the tuned model got wrong: of every fault the first ones, at most 60 in all."""

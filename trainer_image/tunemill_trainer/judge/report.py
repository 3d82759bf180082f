"""report.json of evaluate: written by it, read by publish for the model card."""

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
    exact: int
    """Wanted calls that were made with equal arguments."""


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


Confusion = dict[str, dict[str, int]]
"""Wanted tool → called tool → calls."""


class Report(ApiModel):
    """All figures of the evaluation."""

    rows: int
    """Held-out rows."""
    cases: int
    """Turns of the assistant in them."""
    settings: Settings
    """How the replies were made."""
    metrics: dict[str, MetricReport]
    """By name."""
    right: Right
    """Case by case."""
    tools: dict[str, ToolReport]
    """By name."""
    base_confusion: Confusion
    """Of the base model."""
    tuned_confusion: Confusion
    """Of the tuned model."""

"""What is wrong with rows: a rule, a place and what to change, collected for the report and the error message."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from tunemill_trainer.data.rows import JsonObject, Source

_KEPT = 1000
"""Findings that the report lists; the counts go on. A file of a million bad lines must not fill the workspace."""


class Rule(StrEnum):
    """What a row must not be. All but DUPLICATE make the row invalid."""

    NOT_JSON = "not-json"
    FORMAT = "format"
    UNKNOWN_ROLE = "unknown-role"
    ROLE_ORDER = "role-order"
    EMPTY_TURN = "empty-turn"
    BROKEN_CALL = "broken-call"
    BROKEN_TOOL = "broken-tool"
    UNKNOWN_TOOL = "unknown-tool"
    MISSING_ARGUMENT = "missing-argument"
    EXTRA_ARGUMENT = "extra-argument"
    WRONG_ARGUMENT = "wrong-argument"
    UNANSWERED_CALL = "unanswered-call"
    UNKNOWN_CALL_ID = "unknown-call-id"
    MARKER_IN_TEXT = "marker-in-text"
    NOT_REPRODUCIBLE = "not-reproducible"
    DUPLICATE = "duplicate"


REMEDIES: dict[Rule, str] = {
    Rule.NOT_JSON: "Write one whole JSON object a line, in UTF-8.",
    Rule.FORMAT: "Bring the row into the format that spec.dataset.format names.",
    Rule.UNKNOWN_ROLE: "Use the roles system, user, assistant and tool, or those of the format's own.",
    Rule.ROLE_ORDER: "Put the system message first, and tool messages after the assistant turn that calls.",
    Rule.EMPTY_TURN: "Give the assistant turn a text or a call, or remove it.",
    Rule.BROKEN_CALL: "Write a call as an object with name and arguments, the arguments as an object.",
    Rule.BROKEN_TOOL: "Declare a tool with a name and, as parameters, a JSON schema of type object.",
    Rule.UNKNOWN_TOOL: "Declare the tool in the row, or correct the name in the call.",
    Rule.MISSING_ARGUMENT: "Add the argument to the call, or take it out of the schema's required list.",
    Rule.EXTRA_ARGUMENT: "Declare the argument in the tool's schema, or take it out of the call.",
    Rule.WRONG_ARGUMENT: "Correct the argument's value, or the tool's schema.",
    Rule.UNANSWERED_CALL: "Put the tool's answer after the call, or end the row with the call.",
    Rule.UNKNOWN_CALL_ID: "Let tool_call_id be the id of a call in the assistant turn before.",
    Rule.MARKER_IN_TEXT: "Take the marker out of the text: the model would read it as the end of a call or a turn.",
    Rule.NOT_REPRODUCIBLE: "Take out characters that the base model's tokenizer cannot write.",
    Rule.DUPLICATE: "Nothing: the row is used once.",
}


@dataclass(frozen=True)
class Problem:
    """A rule that a row breaks, and how."""

    rule: Rule
    message: str


class RowError(ValueError):
    """The row cannot be read."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(rule, message)


@dataclass(frozen=True)
class Finding:
    """A problem and where it is."""

    source: Source
    problem: Problem

    def __str__(self) -> str:
        return f"{self.source}: {self.problem.message}"


@dataclass
class Findings:
    """Collects findings: the first ones in full, the rest as counts.

    Attributes:
        counts: findings by rule.
        listed: the first findings.
    """

    counts: Counter[Rule] = field(default_factory=Counter)
    listed: list[Finding] = field(default_factory=list)

    def add(self, source: Source, problems: Iterable[Problem]) -> None:
        """Take note of the problems of one row."""
        for problem in problems:
            self.counts[problem.rule] += 1
            if len(self.listed) < _KEPT:
                self.listed.append(Finding(source, problem))

    def to_json(self) -> JsonObject:
        """Return counts, remedies and the first findings for the report."""
        return {
            "counts": {rule.value: count for rule, count in sorted(self.counts.items())},
            "remedies": {rule.value: REMEDIES[rule] for rule in sorted(self.counts)},
            "first": [
                {"source": str(item.source), "rule": item.problem.rule.value, "message": item.problem.message}
                for item in self.listed
            ],
        }

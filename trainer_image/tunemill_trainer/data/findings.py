"""What is wrong with rows: a rule, a place and what to change, collected for the report and the error message.

Two readers, two texts. The message of a problem may quote the row: it goes into prepare's report in the workspace and
to the terminal of `tunemill-trainer lint`. The status, events and logs get the file, the line, the rule and the field
only (`str(finding)`): more people can read those than may read the data.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from traceback import extract_tb
from types import TracebackType

from tunemill_api.failures import Reason

from tunemill_trainer.data.rows import JsonObject, Source
from tunemill_trainer.errors import StageError

_KEPT = 1000
"""Findings that the report lists; the counts go on. A file of a million bad lines must not fill the workspace."""


class Severity(StrEnum):
    """What follows from a finding: an error makes its row useless, a warning is for the user to judge."""

    ERROR = "error"
    WARNING = "warning"


class Rule(StrEnum):
    """What rows are held against."""

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
    DUPLICATE_CALL_ID = "duplicate-call-id"
    BREAKS_CONTRACT = "breaks-contract"
    SECRET = "secret"  # noqa: S105 - the name of a rule
    MARKER_IN_TEXT = "marker-in-text"
    FOREIGN_MARKER = "foreign-marker"
    TEXT_CALL = "text-call"
    PYTHON_LITERAL = "python-literal"
    NOT_REPRODUCIBLE = "not-reproducible"
    DUPLICATE = "duplicate"
    LEAKED = "leaked"
    OVERLONG = "overlong"
    NOT_SUPERVISED = "not-supervised"
    RENAMED_TOOL = "renamed-tool"
    JOINED_TURNS = "joined-turns"
    UNCALLED_TOOL = "uncalled-tool"
    IMBALANCE = "imbalance"
    INTERNAL_ERROR = "internal-error"

    @property
    def severity(self) -> Severity:
        """What follows from a finding of this rule."""
        return Severity.WARNING if self in _WARNINGS else Severity.ERROR


_WARNINGS = frozenset(
    {
        Rule.DUPLICATE,
        Rule.LEAKED,
        Rule.OVERLONG,
        Rule.NOT_SUPERVISED,
        Rule.FOREIGN_MARKER,
        Rule.TEXT_CALL,
        Rule.PYTHON_LITERAL,
        Rule.RENAMED_TOOL,
        Rule.JOINED_TURNS,
        Rule.UNCALLED_TOOL,
        Rule.IMBALANCE,
    }
)

REMEDIES: dict[Rule, str] = {
    Rule.NOT_JSON: "Write one whole JSON object a line, in UTF-8.",
    Rule.FORMAT: "Bring the row into the format that spec.dataset.format names.",
    Rule.UNKNOWN_ROLE: "Use the roles system, user, assistant and tool, or those of the format's own.",
    Rule.ROLE_ORDER: "Put the system message first, and tool messages after the assistant turn that calls.",
    Rule.EMPTY_TURN: "Give the turn a text, or in the assistant's case a call, or remove it.",
    Rule.BROKEN_CALL: "Write a call as an object with name and arguments, the arguments as an object.",
    Rule.BROKEN_TOOL: "Declare a tool with a name and, as parameters, a JSON schema of type object.",
    Rule.UNKNOWN_TOOL: "Declare the tool in the row or in spec.tools, or correct the name in the call.",
    Rule.MISSING_ARGUMENT: "Add the argument to the call, or take it out of the schema's required list.",
    Rule.EXTRA_ARGUMENT: "Declare the argument in the tool's schema, or take it out of the call.",
    Rule.WRONG_ARGUMENT: "Correct the argument's value, or the tool's schema.",
    Rule.UNANSWERED_CALL: "Put the tool's answer after the call, or end the row with the call.",
    Rule.UNKNOWN_CALL_ID: "Let tool_call_id be the id of a call in the assistant turn before.",
    Rule.DUPLICATE_CALL_ID: "Give each call of a turn an id of its own, and answer each id once.",
    Rule.BREAKS_CONTRACT: "Offer the tools as spec.tools declares them, or change the declaration there.",
    Rule.SECRET: "Take the secret out of the data and revoke it: a model may repeat what it has learnt.",
    Rule.MARKER_IN_TEXT: "Take the marker out of the text: the model would read it as the end of a call or a turn.",
    Rule.FOREIGN_MARKER: "Take the marker out: servers of some models take it for the begin of another call.",
    Rule.TEXT_CALL: "Write the call into `tool_calls`, or leave it where it is only spoken of.",
    Rule.PYTHON_LITERAL: "Write the value as JSON, or as a list or an object instead of a text.",
    Rule.NOT_REPRODUCIBLE: "Take out characters that the base model's tokenizer cannot write.",
    Rule.DUPLICATE: "Nothing: the row is used once.",
    Rule.LEAKED: "Nothing: the row is left out of training. Take it out of one of the files to keep their sizes.",
    Rule.OVERLONG: "Raise spec.training.maxLength, or shorten the row; until then it is left out.",
    Rule.NOT_SUPERVISED: "Give the row an assistant turn, or set spec.training.lossOn to All; else it is left out.",
    Rule.RENAMED_TOOL: "Use the new name where the model is served, or rename the tool in the data.",
    Rule.JOINED_TURNS: "Nothing: they are learnt as one turn. Or put the turn that is missing between them.",
    Rule.UNCALLED_TOOL: "Add rows that call the tools, or leave them out of `tools`.",
    Rule.IMBALANCE: "Add rows that call the rare tools, or leave them out of `tools`.",
    Rule.INTERNAL_ERROR: "Report it to Tunemill's authors, with the row if you may; take the row out until then.",
}


@dataclass(frozen=True)
class Problem:
    """A rule that a row breaks, and how.

    Attributes:
        rule: the rule.
        message: how; may quote the row, so it stays out of status, events and logs.
        field: where in the row: keys that the format defines and positions. Never a key of a call's arguments, the name
            of a tool or any other text of the row.
    """

    rule: Rule
    message: str
    field: str = ""


def invalidating(problems: Iterable[Problem]) -> bool:
    """Return whether any of the problems makes its row useless."""
    return any(problem.rule.severity is Severity.ERROR for problem in problems)


class RowError(ValueError):
    """The row cannot be read. Its text may quote the row; see `Problem`."""

    def __init__(self, rule: Rule, message: str, field: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(rule, message, field)


class Within:
    """A block that reads a part of a row: the part's place is put before that of a RowError in it.

    Args:
        key: of the format, such as messages; empty for an element of what an outer block reads.
        index: of the element in a list, from 0.
    """

    __slots__ = ("_index", "_key")

    def __init__(self, key: str, index: int | None = None) -> None:
        self._key = key
        self._index = index

    def __enter__(self) -> None:
        """Begin; nothing to do."""

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if error is not None and isinstance(error, RowError):
            here, inner = self._key + ("" if self._index is None else f"[{self._index}]"), error.problem.field
            joint = "." if here and inner and not inner.startswith("[") else ""
            error.problem = replace(error.problem, field=f"{here}{joint}{inner}")


class DataError(StageError):
    """The data cannot be used.

    Args:
        reason: as of StageError.
        message: as of StageError; quotes nothing of the data.
        detail: the same with what was found, for the user's own terminal; as the message where there is no more to say.
        remedy: as of StageError.
    """

    def __init__(self, reason: Reason, message: str, detail: str = "", remedy: str = "") -> None:
        super().__init__(reason, message, remedy)
        self.detail = detail or message


class RowCrashError(Exception):
    """This program is wrong: it failed at a row in a way that it should not. Quotes nothing of the row."""


def crash(error: Exception, at: object) -> RowCrashError:
    """Return what may be said of an unexpected error: Python's own messages often quote what they were about.

    To be raised `from None`, so that no traceback shows the message either.

    Args:
        error: that was raised.
        at: the place of the row.
    """
    return RowCrashError(f"{_defect(error)}, at {at}")


def crash_problem(error: Exception) -> Problem:
    """Return the problem of a row at which this program failed: the other rows are looked at all the same.

    Its message quotes nothing of the row.
    """
    return Problem(Rule.INTERNAL_ERROR, f"Tunemill failed at the row, which is a defect of Tunemill: {_defect(error)}")


def _defect(error: Exception) -> str:
    last = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name} line {last.lineno}"


def full_text(error: StageError) -> str:
    """Return all that is known of a failure. It may quote the data: for the user's own terminal."""
    return error.detail if isinstance(error, DataError) else error.message


@dataclass(frozen=True)
class Finding:
    """A problem and where it is."""

    source: Source
    problem: Problem

    def __str__(self) -> str:
        """Return the file, the line, the rule and the field: all that status, events and logs may have of it."""
        return f"{self.source}: {self.problem.rule}" + (f" at {self.problem.field}" if self.problem.field else "")

    def to_json(self) -> JsonObject:
        """Return the finding as `tunemill-trainer lint --json` and the report have it."""
        rule = self.problem.rule
        return {
            "file": self.source.file,
            "line": self.source.line,
            "rule": rule.value,
            "field": self.problem.field,
            "severity": rule.severity.value,
            "message": self.problem.message,
            "remedy": REMEDIES[rule],
        }


@dataclass
class Findings:
    """Collects findings: the first ones in full, the rest as counts.

    Attributes:
        counts: findings by rule.
        listed: the first findings.
        kept: how many are listed at most.
    """

    counts: Counter[Rule] = field(default_factory=Counter)
    listed: list[Finding] = field(default_factory=list)
    kept: int = _KEPT

    def add(self, source: Source, problems: Iterable[Problem]) -> None:
        """Take note of the problems of one row."""
        for problem in problems:
            self.counts[problem.rule] += 1
            if len(self.listed) < self.kept:
                self.listed.append(Finding(source, problem))

    def merge(self, other: "Findings") -> None:
        """Take over what was collected elsewhere."""
        self.counts.update(other.counts)
        self.listed += other.listed[: max(0, self.kept - len(self.listed))]

    def to_json(self) -> JsonObject:
        """Return the counts and the first findings for the report."""
        return {
            "counts": {rule.value: count for rule, count in sorted(self.counts.items())},
            "first": [item.to_json() for item in self.listed],
        }

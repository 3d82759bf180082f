"""Findings about rows: the rule that a row breaks, where, and how to fix it.

The message of a problem may quote the row. It appears in prepare's report in the workspace and in the output of
`tunemill lint`. Status, events and logs get only file, line, rule and field (`str(finding)`), because more
people can read those than may read the data.
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
"""The most findings that the report lists. Counts cover all of them. A file of a million bad lines must not fill the
workspace."""


class Severity(StrEnum):
    """The severity of a finding: an error excludes its row; a warning is for the user to judge."""

    ERROR = "error"
    WARNING = "warning"


class Rule(StrEnum):
    """The rules that rows are checked against."""

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
        """The severity of this rule's findings."""
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
    Rule.NOT_JSON: "Write one complete JSON object per line, in UTF-8.",
    Rule.FORMAT: "Convert the row to the format that spec.dataset.format names.",
    Rule.UNKNOWN_ROLE: "Use the roles system, user, assistant and tool, or the roles that the format defines.",
    Rule.ROLE_ORDER: "Put the system message first, and each tool message after the assistant turn with the call.",
    Rule.EMPTY_TURN: "Add text to the turn (or a call, in an assistant turn), or remove the turn.",
    Rule.BROKEN_CALL: "Write the call as an object with `name` and `arguments`, where `arguments` is an object.",
    Rule.BROKEN_TOOL: "Declare the tool with a name, and with a JSON schema of type object as `parameters`.",
    Rule.UNKNOWN_TOOL: "Declare the tool in the row or in spec.tools, or correct the name in the call.",
    Rule.MISSING_ARGUMENT: "Add the argument to the call, or remove it from the schema's `required` list.",
    Rule.EXTRA_ARGUMENT: "Declare the argument in the tool's schema, or remove it from the call.",
    Rule.WRONG_ARGUMENT: "Correct the argument's value, or the tool's schema.",
    Rule.UNANSWERED_CALL: "Add the tool's response after the call, or end the row with the call.",
    Rule.UNKNOWN_CALL_ID: "Set tool_call_id to the id of a call in the preceding assistant turn.",
    Rule.DUPLICATE_CALL_ID: "Give each call of a turn a unique id, and respond to each id once.",
    Rule.BREAKS_CONTRACT: "Declare the tools in the row as spec.tools declares them, or change spec.tools.",
    Rule.SECRET: "Remove the secret from the data and revoke it: a model can repeat its training data.",
    Rule.MARKER_IN_TEXT: "Remove the marker from the text: a server reads it as the start or end of a call or turn.",
    Rule.FOREIGN_MARKER: "Remove the marker: servers of some models read it as the start of another call.",
    Rule.TEXT_CALL: "Move the call to `tool_calls`. Keep it if the text only mentions a call.",
    Rule.PYTHON_LITERAL: "Write the value as JSON, or as a list or object instead of text.",
    Rule.NOT_REPRODUCIBLE: "Remove characters that the base model's tokenizer cannot encode.",
    Rule.DUPLICATE: "No action needed: the row is used once.",
    Rule.LEAKED: "No action needed: the row is excluded from training, replay or the suite. Remove it from one file to "
    "keep the sizes.",
    Rule.OVERLONG: "Raise spec.training.maxLength, or shorten the row. Rows that are too long are excluded.",
    Rule.NOT_SUPERVISED: "Add an assistant turn to train on, or set spec.training.lossOn to All. The row is excluded.",
    Rule.RENAMED_TOOL: "Use the new name where the model is served, or rename the tool in the data.",
    Rule.JOINED_TURNS: "No action needed: they are trained as one turn. If a turn is missing between them, add it.",
    Rule.UNCALLED_TOOL: "Add rows that call the tools, or remove them from `tools`.",
    Rule.IMBALANCE: "Add rows that call the rare tools, or remove them from `tools`.",
    Rule.INTERNAL_ERROR: "Report this bug to Tunemill, with the row if you can share it. Remove the row for now.",
}


@dataclass(frozen=True)
class Problem:
    """A rule that a row breaks, and how.

    Attributes:
        rule: the rule.
        message: how the row breaks it. It may quote the row, so it must not appear in status, events or logs.
        field: the path in the row: keys that the format defines, and positions. It never holds keys of a call's
            arguments, names of tools or any other text of the row.
    """

    rule: Rule
    message: str
    field: str = ""


def invalidating(problems: Iterable[Problem]) -> bool:
    """Return whether any of the problems excludes its row."""
    return any(problem.rule.severity is Severity.ERROR for problem in problems)


class RowError(ValueError):
    """The row cannot be read. The message may quote the row; see `Problem`."""

    def __init__(self, rule: Rule, message: str, field: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(rule, message, field)


class Within:
    """A context manager around code that reads a part of a row: prefixes the field of a RowError with the part's path.

    Args:
        key: the key that the format defines, such as `messages`; empty for an element of the outer block's part.
        index: the index of the element in a list, from 0.
    """

    __slots__ = ("_index", "_key")

    def __init__(self, key: str, index: int | None = None) -> None:
        self._key = key
        self._index = index

    def __enter__(self) -> None:
        """Enter the block."""

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
        reason: see StageError.
        message: see StageError. It must not quote the data.
        detail: the message with quotes from the data, for the user's terminal. The default is the message.
        remedy: see StageError.
    """

    def __init__(self, reason: Reason, message: str, detail: str = "", remedy: str = "") -> None:
        super().__init__(reason, message, remedy)
        self.detail = detail or message


class RowCrashError(Exception):
    """A bug: an unexpected exception while a row was processed. The message does not quote the row."""


def crash(error: Exception, at: object) -> RowCrashError:
    """Return an exception that describes an unexpected one without its message, which may quote the row.

    Raise it `from None`, so that the traceback does not show the message either.

    Args:
        error: the unexpected exception.
        at: the place of the row.
    """
    return RowCrashError(f"{_defect(error)}, at {at}")


def crash_problem(error: Exception) -> Problem:
    """Return the problem of a row whose processing raised an unexpected exception, so that other rows can go on.

    The message does not quote the row.
    """
    return Problem(Rule.INTERNAL_ERROR, f"Tunemill failed to process the row; this is a bug: {_defect(error)}")


def _defect(error: Exception) -> str:
    last = extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(last.filename).name} line {last.lineno}"


def full_text(error: StageError) -> str:
    """Return the full message of a failure. It may quote the data, so show it only on the user's terminal."""
    return error.detail if isinstance(error, DataError) else error.message


@dataclass(frozen=True)
class Finding:
    """A problem and its place in the data."""

    source: Source
    problem: Problem

    def __str__(self) -> str:
        """Return the file, line, rule and field: what status, events and logs may show."""
        return f"{self.source}: {self.problem.rule}" + (f" at {self.problem.field}" if self.problem.field else "")

    def to_json(self) -> JsonObject:
        """Return the finding as in the report and in `tunemill lint --json`."""
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
    """Collects findings: lists the first ones, and counts all.

    Attributes:
        counts: the number of findings by rule.
        listed: the first findings.
        kept: the most findings that are listed.
    """

    counts: Counter[Rule] = field(default_factory=Counter)
    listed: list[Finding] = field(default_factory=list)
    kept: int = _KEPT

    def add(self, source: Source, problems: Iterable[Problem]) -> None:
        """Add the problems of one row."""
        for problem in problems:
            self.counts[problem.rule] += 1
            if len(self.listed) < self.kept:
                self.listed.append(Finding(source, problem))

    def merge(self, other: "Findings") -> None:
        """Add the findings of another collection."""
        self.counts.update(other.counts)
        self.listed += other.listed[: max(0, self.kept - len(self.listed))]

    def to_json(self) -> JsonObject:
        """Return the counts and the first findings for the report."""
        return {
            "counts": {rule.value: count for rule, count in sorted(self.counts.items())},
            "first": [item.to_json() for item in self.listed],
        }

"""Converts a record of a file to a checked canonical row. prepare, lint and score all use it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunemill_api.data import DatasetFormat

from tunemill_trainer.data import formats, lint, prompts, reasoning, text_calls, turn_order
from tunemill_trainer.data.findings import Problem, RowError, Rule, crash_problem, invalidating
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import JsonObject, Message, Role, Row, Source, Tool
from tunemill_trainer.data.tools import served_name
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound

_TIME = TimeBound(seconds=10.0)
"""The time limit for one row. A megabyte of white space can keep some regular expressions busy for minutes; normal rows
take less than a millisecond."""
MEMORY = MemoryBound(512 << 20)
"""The memory limit for a row or a batch of rows. The longest accepted row takes half of it as Python objects."""


@dataclass(frozen=True)
class ReadRow:
    """The result of reading a record.

    Attributes:
        row: the row; None if it has an error.
        problems: errors and warnings.
    """

    row: Row | None
    problems: tuple[Problem, ...] = ()


class RowReader:
    """Reads records of one format.

    Args:
        form: the format; not Auto, see `formats.detect`.
        contract: the tools of spec.tools. Rows without tools get them, and tools in rows must match them.
        drop_reasoning: whether to remove the reasoning of assistant turns.
        last_turn_only: whether to train only on the last assistant turn of a row.
    """

    def __init__(
        self,
        form: DatasetFormat,
        contract: Sequence[Tool] = (),
        *,
        drop_reasoning: bool = False,
        last_turn_only: bool = False,
    ) -> None:
        self.form = form
        self._contract = tuple(contract)
        self._drop_reasoning = drop_reasoning
        self._last_turn_only = last_turn_only

    def read(self, record: Record) -> ReadRow:
        """Return the row of a record with all its problems."""
        if record.value is None:
            return ReadRow(None, (Problem(Rule.NOT_JSON, record.error),))
        try:
            with _TIME, MEMORY:
                row, noted = self.canonical(record.value, record.source)
                problems = [*noted, *lint.problems(row, self._contract)]
        except RowError as error:
            return ReadRow(None, (error.problem,))
        except OutOfBoundsError as error:
            return ReadRow(None, (Problem(Rule.FORMAT, f"reading the row {error}"),))
        except Exception as error:  # noqa: BLE001 - a crash on one row must not hide findings of others
            return ReadRow(None, (crash_problem(error),))
        return ReadRow(None if invalidating(problems) else row, tuple(problems))

    def canonical(self, value: JsonObject, source: Source) -> tuple[Row, list[Problem]]:
        """Convert a JSON object to a canonical row, without checking it. Returns the row, and warnings about changes.

        Raises:
            RowError: the object cannot be converted.
        """
        messages, tools = formats.read(value, self.form)
        if not tools and not self._contract:
            messages, tools = prompts.extract_tools(messages)
        tools = tools or self._contract
        messages, in_text = text_calls.extract(reasoning.extract(messages), tools)
        messages, joints = turn_order.merged(messages)
        messages = formats.without_nulls_of_tables(turn_order.ordered(messages), tools)
        if self._drop_reasoning:
            messages = [replace(message, reasoning="") for message in messages]
        if self._last_turn_only:
            messages = _with_only_last_turn_learnt(messages)
        messages, tools, renamed = _with_served_names(messages, tools)
        return Row(tuple(messages), tools, source), [*in_text, *joints, *renamed]


def _with_only_last_turn_learnt(messages: list[Message]) -> list[Message]:
    last = max((at for at, message in enumerate(messages) if message.role is Role.ASSISTANT), default=-1)
    return [
        replace(message, learnt=False) if message.role is Role.ASSISTANT and at != last else message
        for at, message in enumerate(messages)
    ]


def _with_served_names(
    messages: list[Message], tools: tuple[Tool, ...]
) -> tuple[list[Message], tuple[Tool, ...], list[Problem]]:
    """Rename tools whose names servers do not accept, in definitions, calls and tool messages.

    Raises:
        RowError: BROKEN_TOOL, if no valid name can be made, or two tools would get the same name.
    """
    named = [tool.name for tool in tools]
    called = [call.name for message in messages for call in message.calls]
    new = {name: served_name(name) for name in dict.fromkeys([*named, *called])}
    if all(old == served for old, served in new.items()):
        return messages, tools, []
    _refuse_lost_names(new)
    problems = [
        Problem(Rule.RENAMED_TOOL, f"servers do not accept the tool name {old!r}; renamed to {served}")
        for old, served in new.items()
        if old != served
    ]
    renamed = [
        replace(
            message,
            calls=tuple(replace(call, name=new[call.name]) for call in message.calls),
            name=new.get(message.name, message.name),
        )
        for message in messages
    ]
    return renamed, tuple(replace(tool, name=new[tool.name]) for tool in tools), problems


def _refuse_lost_names(new: dict[str, str]) -> None:
    origins: dict[str, str] = {}
    for old, served in new.items():
        if not served:
            raise RowError(
                Rule.BROKEN_TOOL, f"servers do not accept the tool name {old!r}: use letters, digits, _, - and ."
            )
        if origins.setdefault(served, old) != old:
            raise RowError(
                Rule.BROKEN_TOOL, f"the tools {origins[served]!r} and {old!r} would both be renamed to {served}"
            )

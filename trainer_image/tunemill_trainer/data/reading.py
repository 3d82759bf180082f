"""From what a file holds to a canonical row that was looked at: the one way in for prepare, lint and score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunemill_api.data import DatasetFormat

from tunemill_trainer.data import answers, formats, lint, prompts, text_calls, thoughts
from tunemill_trainer.data.findings import Problem, RowError, Rule, crash_problem, invalidating
from tunemill_trainer.data.records import Record
from tunemill_trainer.data.rows import JsonObject, Message, Role, Row, Source, Tool
from tunemill_trainer.data.tools import served_name
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound

_TIME = TimeBound(seconds=10.0)
"""For one row: a megabyte of white space keeps some patterns busy for minutes. Usual is less than a millisecond."""
MEMORY = MemoryBound(512 << 20)
"""For one row, or for a batch of them. The longest row takes half of it as Python objects."""


@dataclass(frozen=True)
class ReadRow:
    """What became of a record.

    Attributes:
        row: None when an error makes it useless.
        problems: errors and warnings.
    """

    row: Row | None
    problems: tuple[Problem, ...] = ()


class RowReader:
    """Reads records of one format.

    Args:
        form: the format; not Auto, see `formats.detect`.
        contract: spec.tools: the tools of rows that carry none, and what those that do must agree with.
        drops_thoughts: whether what assistants think is left out.
        last_turn_only: whether of a row's assistant turns only the last one is learnt.
    """

    def __init__(
        self,
        form: DatasetFormat,
        contract: Sequence[Tool] = (),
        *,
        drops_thoughts: bool = False,
        last_turn_only: bool = False,
    ) -> None:
        self.form = form
        self._contract = tuple(contract)
        self._drops_thoughts = drops_thoughts
        self._last_turn_only = last_turn_only

    def read(self, record: Record) -> ReadRow:
        """Return the row of a record with everything that is wrong with it."""
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
        except Exception as error:  # noqa: BLE001 - one row must not hide what is wrong with the others
            return ReadRow(None, (crash_problem(error),))
        return ReadRow(None if invalidating(problems) else row, tuple(problems))

    def canonical(self, value: JsonObject, source: Source) -> tuple[Row, list[Problem]]:
        """Return the row that a JSON object is, before anybody looks for what is wrong in it, and what was changed.

        Raises:
            RowError: it cannot be read.
        """
        messages, tools = formats.read(value, self.form)
        if not tools and not self._contract:
            messages, tools = prompts.tools_apart(messages)
        tools = tools or self._contract
        messages, in_text = text_calls.apart(thoughts.apart(messages), tools)
        messages, joints = answers.joined(messages)
        messages = formats.without_filled_nulls(answers.in_order(messages), tools)
        if self._drops_thoughts:
            messages = [replace(message, reasoning="") for message in messages]
        if self._last_turn_only:
            messages = _with_last_turn_learnt(messages)
        messages, tools, renamed = _with_served_names(messages, tools)
        return Row(tuple(messages), tools, source), [*in_text, *joints, *renamed]


def _with_last_turn_learnt(messages: list[Message]) -> list[Message]:
    last = max((at for at, message in enumerate(messages) if message.role is Role.ASSISTANT), default=-1)
    return [
        replace(message, learnt=False) if message.role is Role.ASSISTANT and at != last else message
        for at, message in enumerate(messages)
    ]


def _with_served_names(
    messages: list[Message], tools: tuple[Tool, ...]
) -> tuple[list[Message], tuple[Tool, ...], list[Problem]]:
    """Return a conversation whose tools have names that servers take, the same ones everywhere.

    Raises:
        RowError: BROKEN_TOOL, when no such name can be made, or two tools would get the same.
    """
    named = [tool.name for tool in tools]
    called = [call.name for message in messages for call in message.calls]
    new = {name: served_name(name) for name in dict.fromkeys([*named, *called])}
    if all(old == served for old, served in new.items()):
        return messages, tools, []
    _refuse_lost_names(new)
    problems = [
        Problem(Rule.RENAMED_TOOL, f"servers take no name like {old!r}; the tool is now called {served}")
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
            raise RowError(Rule.BROKEN_TOOL, f"servers take no name like {old!r}: use letters, digits, _, - and .")
        if origins.setdefault(served, old) != old:
            raise RowError(Rule.BROKEN_TOOL, f"servers would know {origins[served]!r} and {old!r} both as {served}")

"""Reads the files for `tunemill score`: rows with the expected replies, and a model's raw replies to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pydantic import JsonValue
from tunemill_api.data import DatasetFormat
from tunemill_api.failures import Reason

from tunemill_trainer.data import formats
from tunemill_trainer.data.files import DataFile
from tunemill_trainer.data.findings import REMEDIES, RowError
from tunemill_trainer.data.reading import RowReader
from tunemill_trainer.data.records import Record, records
from tunemill_trainer.data.rows import JsonObject, Message, Role, Row, Source, Tool
from tunemill_trainer.data.values import shortened
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.metrics import Reply

_NAMED = 3
"""The most places that a message lists."""

_ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|user|>",
    "<|observation|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eom|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<seed:eos>",
    "[e~[",
    "<start_function_response>",
    "<eos>",
    "</s>",
    "<pad>",
)
"""Stop tokens of known models. A server removes them before it parses calls."""


@dataclass(frozen=True)
class GoldRow:
    """A row whose last assistant message is the expected reply; messages after it are ignored.

    Attributes:
        id: the row's id as text; the number 1 and the string "1" are the same id.
        given_id: the id as in the file.
        messages: the messages before the expected reply.
        tools: the available tools.
        gold: the expected reply.
        source: the place of the row.
    """

    id: str
    given_id: str | int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    gold: Message
    source: Source


@dataclass(frozen=True)
class GoldTurn(GoldRow):
    """An assistant turn of a row, with the id that it has as a case of evaluate.

    Attributes:
        row: the number of the row among all that are read.
    """

    row: int


@dataclass(frozen=True)
class GoldRows:
    """All rows, and their format."""

    rows: tuple[GoldRow, ...]
    format: DatasetFormat

    @property
    def tool_names(self) -> set[str]:
        """The names of all tools that any row declares or calls."""
        offered = {tool.name for row in self.rows for tool in row.tools}
        return offered | {call.name for row in self.rows for call in row.gold.calls}


def read_rows(file: DataFile, form: DatasetFormat, tools: tuple[Tool, ...]) -> GoldRows:
    """Return the rows of a file.

    Args:
        file: the file.
        form: their format, or Auto.
        tools: what may be called in rows that carry no tools of their own.

    Raises:
        StageError: DatasetEmpty, DatasetMalformed, DatasetFormatUnknown or DatasetInvalidRows.
    """
    form = formats.detect(records(file), file.name, form)
    reader = RowReader(form, tools)
    rows: dict[str, GoldRow] = {}
    for record in records(file):
        value, given = _identified(record)
        identifier = str(given)
        if identifier in rows:
            _refuse(record, f"{rows[identifier].source} has the same id {identifier}", "Give every row a unique id.")
        try:
            row = reader.canonical(value, record.source)[0]
        except RowError as error:
            _refuse(record, error.problem.message, REMEDIES[error.problem.rule])
        last = max((i for i, message in enumerate(row.messages) if message.role is Role.ASSISTANT), default=None)
        if last is None:
            _refuse(record, "expected an assistant message with the expected reply, found none", "Add one.")
        rows[identifier] = GoldRow(identifier, given, row.messages[:last], row.tools, row.messages[last], row.source)
    return GoldRows(tuple(rows.values()), form)


def read_turns(
    files: Sequence[DataFile], form: DatasetFormat, tools: tuple[Tool, ...]
) -> tuple[list[GoldTurn], DatasetFormat, int]:
    """Return the assistant turns that evaluate would judge if all rows of some files were held out.

    Args:
        files: the files.
        form: the format of their rows, or Auto.
        tools: what may be called in rows that carry no tools of their own.

    Returns:
        The turns, the format of the first file, and the number of rows that are left out because they have errors, as
        prepare leaves them out.

    Raises:
        StageError: DatasetEmpty, DatasetMalformed or DatasetFormatUnknown; DatasetInvalidRows, when no row is usable.
    """
    turns, found, left_out, number = list[GoldTurn](), list[DatasetFormat](), 0, 0
    problem = ""
    for file in files:
        found.append(formats.detect(records(file), file.name, form))
        reader = RowReader(found[-1], tools)
        for record in records(file):
            read = reader.read(record)
            if read.row is None:
                left_out += 1
                problem = problem or f"{record.source}: {read.problems[0].message}"
            else:
                turns += _turns_of(read.row, number)
                number += 1
    if not turns:
        raise StageError(
            Reason.DATASET_INVALID_ROWS,
            f"expected rows with an assistant turn, found none; {left_out} rows have errors: {problem}",
            "Run `tunemill lint` on the files.",
        )
    return turns, found[0], left_out


def _turns_of(row: Row, number: int) -> Iterator[GoldTurn]:
    count = 0
    for index, message in enumerate(row.messages):
        if message.role is Role.ASSISTANT:
            count += 1
            if message.learnt:
                identifier = f"{row.source.file}:{row.source.line}#{count}"
                yield GoldTurn(identifier, identifier, row.messages[:index], row.tools, message, row.source, number)


def read_outputs(file: DataFile, rows: GoldRows) -> list[Reply]:
    """Return the replies in the order of the rows.

    A reply is finished if its field `finished` says so, or else if it ends with a stop token, provided that any reply
    in the file does.

    Raises:
        StageError: DatasetMalformed or DatasetInvalidRows, also when a row has no reply.
    """
    known = {row.id for row in rows.rows}
    found: dict[str, tuple[str, bool | None, Source]] = {}
    for record in records(file):
        value, given = _identified(record)
        identifier = str(given)
        if identifier not in known:
            _refuse(record, f"no row has the id {identifier}", "Remove replies to other rows.")
        if identifier in found:
            place = found[identifier][2]
            _refuse(record, f"{place} has the same id {identifier}", "Give one reply per row.")
        output, finished = value.get("output"), value.get("finished")
        if not isinstance(output, str):
            _refuse(record, f"expected `output` to be a string, found {_shown(output)}", "Write the raw reply there.")
        if not (finished is None or isinstance(finished, bool)):
            _refuse(record, f"expected `finished` to be true or false, found {_shown(finished)}", "Correct it.")
        found[identifier] = output, finished, record.source
    missing = [row for row in rows.rows if row.id not in found]
    if missing:
        places = ", ".join(f"{row.id} ({row.source})" for row in missing[:_NAMED])
        raise StageError(
            Reason.DATASET_INVALID_ROWS,
            f"expected a reply to every row in {file.name}, found none for {len(missing)} of {len(rows.rows)}: {places}"
            + (", …" if len(missing) > _NAMED else ""),
            'Add a line {"id": …, "output": …} for each. The output of an empty reply is "".',
        )
    marked = any(_without_end(output) != output for output, _, _ in found.values())
    return [_reply(*found[row.id][:2], marked=marked) for row in rows.rows]


def _reply(output: str, finished: bool | None, *, marked: bool) -> Reply:
    text = _without_end(output)
    if finished is None and marked:
        finished = text != output
    return Reply(text, finished)


def _without_end(output: str) -> str:
    """Return the reply without stop tokens at its end."""
    kept, end = len(output), _end_of_text(output, len(output))
    # Use positions instead of copies: a reply may end with thousands of <pad>.
    while mark := next((mark for mark in _ENDS if output.endswith(mark, 0, end)), ""):
        kept = end = _end_of_text(output, end - len(mark))
    return output[:kept]


def _end_of_text(output: str, end: int) -> int:
    """Return the end of the text before `end` without trailing white space."""
    while end and output[end - 1].isspace():
        end -= 1
    return end


def _identified(record: Record) -> tuple[JsonObject, str | int]:
    """Return the object of a record and its id."""
    if record.value is None:
        _refuse(record, record.error, "Write one complete JSON object per line, in UTF-8.")
    identifier = record.value.get("id")
    if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
        _refuse(record, f"expected `id` to be a string or an integer, found {_shown(identifier)}", "Add it.")
    return record.value, identifier


def _refuse(record: Record, problem: str, remedy: str) -> NoReturn:
    raise StageError(Reason.DATASET_INVALID_ROWS, f"{record.source}: {problem}", remedy)


def _shown(value: JsonValue) -> str:
    return "none" if value is None else shortened(repr(value))

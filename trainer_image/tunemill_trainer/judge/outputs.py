"""The files that `tunemill-trainer score` reads: rows with their right answers, and any model's raw replies to them."""

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
from tunemill_trainer.data.rows import JsonObject, Message, Role, Source, Tool
from tunemill_trainer.data.values import shortened
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.metrics import Reply

_NAMED = 3
"""Places that one message names."""

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
"""Where models stop. A server takes these marks away before it looks for calls."""


@dataclass(frozen=True)
class GoldRow:
    """A row whose last assistant message is the right answer; what stands after that message is passed over.

    Attributes:
        id: the row's id as text; the number 1 and the text "1" are the same.
        given_id: as it stands in the file.
        messages: the history.
        tools: what may be called.
        gold: the right answer.
        source: where the row stands.
    """

    id: str
    given_id: str | int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    gold: Message
    source: Source


@dataclass(frozen=True)
class GoldRows:
    """All rows, and the format that they are in."""

    rows: tuple[GoldRow, ...]
    format: DatasetFormat

    @property
    def tool_names(self) -> set[str]:
        """The tools that are offered or called in any row."""
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
            _refuse(record, f"the id {identifier} is also that of {rows[identifier].source}", "Give every row its own.")
        try:
            row = reader.canonical(value, record.source)[0]
        except RowError as error:
            _refuse(record, error.problem.message, REMEDIES[error.problem.rule])
        last = max((i for i, message in enumerate(row.messages) if message.role is Role.ASSISTANT), default=None)
        if last is None:
            _refuse(record, "expected an assistant message, which is the right answer, found none", "Add it.")
        rows[identifier] = GoldRow(identifier, given, row.messages[:last], row.tools, row.messages[last], row.source)
    return GoldRows(tuple(rows.values()), form)


def read_outputs(file: DataFile, rows: GoldRows) -> list[Reply]:
    """Return the replies in the order of the rows.

    Whether a model ended its turn is told by the mark at the reply's end, if any reply of the file has one, or by the
    field `finished`.

    Raises:
        StageError: DatasetMalformed or DatasetInvalidRows, also when a row has no reply.
    """
    known = {row.id for row in rows.rows}
    found: dict[str, tuple[str, bool | None, Source]] = {}
    for record in records(file):
        value, given = _identified(record)
        identifier = str(given)
        if identifier not in known:
            _refuse(record, f"no row has the id {identifier}", "Score the replies to these rows, and no others.")
        if identifier in found:
            place = found[identifier][2]
            _refuse(record, f"the id {identifier} is also that of {place}", "Give one reply a row.")
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
            'Add a line {"id": …, "output": …} for each; a model that said nothing has an empty output.',
        )
    marked = any(_without_end(output) != output for output, _, _ in found.values())
    return [_reply(*found[row.id][:2], marked=marked) for row in rows.rows]


def _reply(output: str, finished: bool | None, *, marked: bool) -> Reply:
    text = _without_end(output)
    if finished is None and marked:
        finished = text != output
    return Reply(text, finished)


def _without_end(output: str) -> str:
    """Return the reply without the marks at its end; as it is when there are none."""
    kept, end = len(output), _end_of_text(output, len(output))
    # By places and not by texts: a reply may end with thousands of <pad>.
    while mark := next((mark for mark in _ENDS if output.endswith(mark, 0, end)), ""):
        kept = end = _end_of_text(output, end - len(mark))
    return output[:kept]


def _end_of_text(output: str, end: int) -> int:
    """Return where the text up to `end` ends without the spaces there."""
    while end and output[end - 1].isspace():
        end -= 1
    return end


def _identified(record: Record) -> tuple[JsonObject, str | int]:
    """Return the object of a record and its id."""
    if record.value is None:
        _refuse(record, record.error, "Write one whole JSON object a line, in UTF-8.")
    identifier = record.value.get("id")
    if not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == "":
        _refuse(record, f"expected an `id`, a text or a whole number, found {_shown(identifier)}", "Add it.")
    return record.value, identifier


def _refuse(record: Record, problem: str, remedy: str) -> NoReturn:
    raise StageError(Reason.DATASET_INVALID_ROWS, f"{record.source}: {problem}", remedy)


def _shown(value: JsonValue) -> str:
    return "none" if value is None else shortened(repr(value))

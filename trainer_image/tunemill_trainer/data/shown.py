"""Rows as text and as JSON: the output of `tunemill show`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue
from tunemill_api.data import DatasetFormat

from tunemill_trainer.data import formats
from tunemill_trainer.data.files import file_of_user
from tunemill_trainer.data.findings import Problem, RowCrashError, Rule, full_text
from tunemill_trainer.data.reading import MEMORY, ReadRow, RowReader
from tunemill_trainer.data.records import BrokenFileError, Line, Record, records, unparsed
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Row, Source, Tool
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.bounds import OutOfBoundsError


class ShownFile:
    """A file that a user named, with the format of its rows.

    Args:
        path: the path as the user wrote it.
        scratch: a folder for a copy, if the file can be read only once.
        form: the format of the rows, or Auto.
        contract: the tools for rows without tools.

    Attributes:
        name: the name of the file.
        form: the detected format; None if it is unknown.
        broken: the problems because of which the file, or the rest of it, cannot be read.

    Raises:
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, scratch: Path, form: DatasetFormat, contract: Sequence[Tool]) -> None:
        self._file = file_of_user(path, scratch)
        self.name = self._file.name
        self.broken: list[Problem] = []
        self.form: DatasetFormat | None = None
        self._contract = contract
        try:
            self.form = formats.detect(records(self._file), self.name, form)
        except RowCrashError as error:
            self.broken.append(Problem(Rule.INTERNAL_ERROR, f"Tunemill failed; this is a bug: {error}"))
        except StageError as error:
            self.broken.append(Problem(Rule.FORMAT, full_text(error)))

    def rows(self, wanted: int | None = None) -> "Iterator[ShownRow]":
        """Yield all rows, or only the row with the number `wanted`, as the trainer reads them."""
        if self.form is None:
            return
        reader = RowReader(self.form, self._contract)
        self.broken.clear()
        try:
            for item in unparsed(self._file):
                if wanted is None or item.source.line == wanted:
                    yield ShownRow(item.source, _read(reader, item))
                    if wanted is not None:
                        return
        except BrokenFileError as error:
            self.broken.append(Problem(Rule.NOT_JSON, full_text(error)))


class ShownRow:
    """A row with its place and its problems.

    Attributes:
        source: the place.
        row: the row; None if it is not usable.
        problems: errors and warnings.
    """

    def __init__(self, source: Source, read: ReadRow) -> None:
        self.source = source
        self.row = read.row
        self.problems = read.problems


def _read(reader: RowReader, item: Line | Record) -> ReadRow:
    try:
        with MEMORY:
            return reader.read(item if isinstance(item, Record) else item.parsed())
    except OutOfBoundsError as error:
        return ReadRow(None, (Problem(Rule.FORMAT, f"reading the row {error}"),))


def openai_form(row: Row) -> JsonObject:
    """Return a row in OpenAI's format, with arguments as objects, plus its place and which turns are trained on."""
    return {
        "file": row.source.file,
        "line": row.source.line,
        "messages": cast("list[JsonValue]", list(openai_messages(row.messages))),
        "tools": [{"type": "function", "function": tool.to_json()} for tool in row.tools],
        "learnt": [message.learnt for message in row.messages if message.role is Role.ASSISTANT],
    }


def openai_messages(messages: Sequence[Message]) -> Iterator[JsonObject]:
    """Yield messages. Canonical rows link responses to calls by order, so call ids are generated here."""
    calls, waiting = 0, list[str]()
    for message in messages:
        value: JsonObject = {"role": message.role.value, "content": message.content}
        if message.reasoning:
            value["reasoning_content"] = message.reasoning
        if message.calls:
            waiting = [f"call_{calls + number}" for number in range(1, len(message.calls) + 1)]
            calls += len(waiting)
            value["tool_calls"] = [
                {"id": identifier, "type": "function", "function": call.to_json()}
                for identifier, call in zip(waiting, message.calls, strict=True)
            ]
        if message.role is Role.TOOL:
            if message.name:
                value["name"] = message.name
            if waiting:
                value["tool_call_id"] = waiting.pop(0)
        yield value


def conversation(row: Row) -> Iterator[tuple[str, str, bool]]:
    """Yield the parts of a row as text: a heading, the text, and whether it is trained on."""
    if row.tools:
        yield "tools", "\n".join(map(_signature, row.tools)), False
    for message in row.messages:
        lines = [f"(reasoning) {message.reasoning}"] if message.reasoning else []
        lines += [message.content] if message.content or not (message.calls or lines) else []
        lines += map(_written, message.calls)
        name = f" {message.name}" if message.name else ""
        yield message.role.value + name, "\n".join(lines), message.learnt and message.role is Role.ASSISTANT


def _signature(tool: Tool) -> str:
    properties, required = tool.parameters.get("properties"), tool.parameters.get("required")
    needed = required if isinstance(required, list) else []
    listed = properties.items() if isinstance(properties, dict) else ()
    parameters = [f"{name}{'' if name in needed else '?'}{_type(schema)}" for name, schema in listed]
    description = f": {tool.description}" if tool.description else ""
    return f"{tool.name}({', '.join(parameters)}){description}"


def _type(schema: JsonValue) -> str:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(kind, list):
        return f": {'|'.join(map(str, kind))}"
    return f": {kind}" if isinstance(kind, str) else ""


def _written(call: Call) -> str:
    return f"→ {call.name} {json.dumps(call.arguments, ensure_ascii=False)}"

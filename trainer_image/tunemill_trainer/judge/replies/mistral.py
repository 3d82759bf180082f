"""`[TOOL_CALLS] [{"name": …, "arguments": {…}}]`, or `[TOOL_CALLS]name{…}` per call since tokenizer v11: Mistral.

Text before the first mark, and after the list or a call's arguments, is ignored. Elements of the list that are not
calls are dropped, and arguments may be a string with an object.
"""

import json
import re
from collections.abc import Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, calls_of_texts, not_json
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = "[TOOL_CALLS]"

_CALL_ID = re.compile(r"\[CALL_ID\].*", re.DOTALL)
"""In some versions of the tokenizer, the call's id is between name and arguments."""
_SCANNER = Scanner(
    {
        (State.TEXT, BEGIN): Transition(State.NAME, begins=True),
        (State.NAME, "[ARGS]"): Transition(State.ARGUMENTS),
        (State.NAME, "{"): Transition(State.ARGUMENTS, kept=True),
        (State.ARGUMENTS, BEGIN): Transition(State.NAME, begins=True),
    },
    inert=("[THINK]", "[/THINK]"),
)
_DECODER = json.JSONDecoder()
_LIST = re.compile(r"\[{.*}\]", re.DOTALL)


def is_listed(text: str) -> bool:
    """Return whether the calls are a list, as before tokenizer version 11."""
    return _first_part(text).startswith(("[{", "{", "[\n", "[ ", "[]"))


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    if BEGIN not in text:
        return NO_CALL
    if is_listed(text):
        return _listed(_first_part(text))
    found = _SCANNER.calls(text)
    for call in found:
        call.name = _CALL_ID.sub("", call.name)
        call.parts = [call.arguments]
    nameless = [call for call in found if not call.name.strip()]
    if nameless:
        return broken(len(found), f"expected a name and arguments after {BEGIN}")
    return as_calls(found, _first_value, tools)


def _first_part(text: str) -> str:
    """Return the text after the first mark that is followed by any text."""
    parts = (part.strip() for part in text.split(BEGIN)[1:])
    return next((part for part in parts if part), "")


def _first_value(arguments: str) -> str:
    arguments = arguments.strip()
    try:
        return arguments[: _DECODER.raw_decode(arguments)[1]]
    except ValueError:
        return arguments


def _listed(text: str) -> ParsedReply:
    try:
        value: JsonValue = _DECODER.raw_decode(text)[0]
    except json.JSONDecodeError as error:
        inner = _LIST.search(text)
        try:
            value = json.loads(inner[0]) if inner else None
        except ValueError:
            value = None
        if value is None:
            return broken(1, not_json(error))
    except (ValueError, RecursionError) as error:
        return broken(1, error)
    calls: list[tuple[str, JsonValue]] = []
    for call in value if isinstance(value, list) else [value]:
        if isinstance(call, dict) and call.keys() & {"name", "arguments"}:
            name, arguments = call.get("name"), call.get("arguments")
            calls.append((name if isinstance(name, str) else "", "{}" if arguments is None else arguments))
    return calls_of_texts(calls, max(1, len(calls)), f"expected a list of calls after {BEGIN}")

"""A lenient parser for calls that a server does not find in a reply.

It is used only to explain results, never for other metrics: it distinguishes a model that does not know what to call
from one that knows, but does not write the call in the format of the server.
"""

import json
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.tools import read_call
from tunemill_trainer.data.values import read_value
from tunemill_trainer.judge.parse import LONGEST_REPLY, ReplyFormat, detect, parse_reply
from tunemill_trainer.judge.replies import functiongemma, pythonic
from tunemill_trainer.process.bounds import MemoryBound, OutOfBoundsError, TimeBound

_BLOCK = re.compile(
    r"<(?:tool_call|function_call|functioncall)>(.*?)(?:</\w+>|(?=<(?:tool_call|function_call|functioncall)>)|\Z)"
    r"|```\w*\s(.*?)(?:```|\Z)"
    r"|(?:\[TOOL_CALLS\]|<\|python_tag\|>)(.*)",
    re.DOTALL,
)
_DECODER = json.JSONDecoder(strict=False)  # allows line breaks in strings
_END_OF_LIST = re.compile(r"\)\s*\]")
_MEMORY, _TIME = MemoryBound(512 << 20), TimeBound(seconds=10.0)
_FORMATS = (
    ReplyFormat.HERMES,
    ReplyFormat.MISTRAL,
    ReplyFormat.LLAMA3_JSON,
    ReplyFormat.PYTHONIC,
    ReplyFormat.LLAMA4_PYTHONIC,
    ReplyFormat.JSON,
)
"""Formats whose parsers do not mistake other text for calls, even without a list of tools."""
_MOST_BRACES = 1000
"""The most braces in one reply that are tried as the start of a call."""


def read_leniently(text: str) -> tuple[Call, ...]:
    """Return the calls that a lenient parser finds in a reply; empty if it finds none."""
    if len(text) > LONGEST_REPLY:
        return ()
    try:
        with _MEMORY, _TIME:
            return _read(text)
    except OutOfBoundsError:
        return ()


def _read(text: str) -> tuple[Call, ...]:
    if functiongemma.BEGIN in text:
        return functiongemma.read_all(text)
    for reply_format in _FORMATS:
        if found := parse_reply(text, reply_format).calls:
            return found
    marked = detect([text])
    if marked and (found := parse_reply(text, marked).calls) and all(map(_is_likely, found)):
        return found
    blocks = [inside for match in _BLOCK.finditer(text) for inside in match.groups() if inside]
    return tuple(call for part in blocks or [text] for call in _calls(part))


def _is_likely(call: Call) -> bool:
    """Return whether a parsed call is plausible; some formats accept any text as the name of a tool."""
    return bool(call.arguments) and re.fullmatch(r"[\w.-]{1,64}", call.name) is not None


def _calls(part: str) -> list[Call]:
    """Return the calls of the first candidate that contains any."""
    for written in _candidates(part):
        with suppress(RowError):
            value = read_value(written, Rule.BROKEN_CALL)
            return [_call(item) for item in (value if isinstance(value, list) else [value])]
        if found := parse_reply(written, ReplyFormat.PYTHONIC).calls:
            return list(found)
    return [call for value in _objects(part) for call in _call_or_none(value)]


def _candidates(part: str) -> Iterator[str]:
    """Yield the text without a code fence, and the parts of it that look like an object or a list of calls.

    Start and end are searched separately: one regular expression for both would take quadratic time.
    """
    yield re.sub(r"\A\s*```\w*|```\s*\Z", "", part).strip()
    yield part[part.find("{") : part.rfind("}") + 1]
    first, last = pythonic.BEGIN.search(part), deque(_END_OF_LIST.finditer(part), maxlen=1)
    if first and last:
        yield part[first.start() : last[0].end()]


def _objects(part: str) -> Iterator[JsonValue]:
    """Yield the JSON objects in a text."""
    end = 0
    for brace in islice(re.finditer(r"\{", part), _MOST_BRACES):
        if brace.start() >= end:
            with suppress(ValueError, RecursionError):
                value, end = _DECODER.raw_decode(part, brace.start())
                yield value


def _call_or_none(value: JsonValue) -> list[Call]:
    with suppress(RowError):
        return [_call(value)]
    return []


def _call(value: JsonValue) -> Call:
    if isinstance(value, dict) and "parameters" in value and "arguments" not in value:
        value = {"name": value.get("name"), "arguments": value["parameters"]}
    if not isinstance(value, dict) or not value.keys() & {"arguments", "function"}:
        raise RowError(Rule.BROKEN_CALL, "not a call")
    return read_call(value)

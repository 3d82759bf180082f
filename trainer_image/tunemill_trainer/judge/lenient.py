"""Finds what a reader who wants to understand would take for calls, where a server takes none.

It explains a figure, and is never counted as one: the difference between a model that does not know what to call and
one that knows and does not write it as the server needs it.
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
_DECODER = json.JSONDecoder(strict=False)  # which takes a text over several lines
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
"""Formats in which nothing but a call is read as one, whatever tools there are."""
_MOST_BRACES = 1000
"""Where a call may begin in one reply; in a longer one nobody would look for it."""


def read_leniently(text: str) -> tuple[Call, ...]:
    """Return the calls that a lenient reader would find; empty when there are none even for him."""
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
    """Return whether a call may be meant as one; some formats take any text for the name of a tool."""
    return bool(call.arguments) and re.fullmatch(r"[\w.-]{1,64}", call.name) is not None


def _calls(part: str) -> list[Call]:
    """Return the calls of the first spelling that holds any."""
    for written in _spellings(part):
        with suppress(RowError):
            value = read_value(written, Rule.BROKEN_CALL)
            return [_call(item) for item in (value if isinstance(value, list) else [value])]
        if found := parse_reply(written, ReplyFormat.PYTHONIC).calls:
            return list(found)
    return [call for value in _objects(part) for call in _call_or_none(value)]


def _spellings(part: str) -> Iterator[str]:
    """Yield the text without a code fence, and what in it looks like an object or a list of calls.

    Each mark is looked for by itself: one pattern from the first to the last would take time by the square of a long
    reply.
    """
    yield re.sub(r"\A\s*```\w*|```\s*\Z", "", part).strip()
    yield part[part.find("{") : part.rfind("}") + 1]
    first, last = pythonic.BEGIN.search(part), deque(_END_OF_LIST.finditer(part), maxlen=1)
    if first and last:
        yield part[first.start() : last[0].end()]


def _objects(part: str) -> Iterator[JsonValue]:
    """Yield the JSON objects in a text, one after another."""
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
        raise RowError(Rule.BROKEN_CALL, "no call")
    return read_call(value)

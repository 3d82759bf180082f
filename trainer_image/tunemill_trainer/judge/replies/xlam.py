"""A JSON list of calls, alone, in a code fence, after `[TOOL_CALLS]`, in `<tool_call>`, or after `</think>`: xLAM.

The first of these places that contains JSON is used. Elements of the list that are not calls are dropped; arguments may
be a string.
"""

import json
import re
from collections.abc import Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, calls_of_texts, read_json

_PLACES = (
    re.compile(r"```(?:json)?\s*([\s\S]*?)```"),
    re.compile(r"\[TOOL_CALLS\]([\s\S]*?)(?=\n|$)"),
    re.compile(r"<tool_call>([\s\S]*?)</tool_call>"),
)
_BEGIN = re.compile(r'\s*\[\s*\{(?=.*"name")', re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    written = _written(text)
    if written is None:
        return NO_CALL
    try:
        value = read_json(written)
    except ValueError as error:
        return broken(1, error) if _BEGIN.match(written) else NO_CALL
    listed = [call for call in value if isinstance(call, dict)] if isinstance(value, list) else []
    calls: list[tuple[str, JsonValue]] = []
    for call in listed:
        if "name" in call and "arguments" in call:
            name, arguments = call["name"], call["arguments"]
            if not isinstance(name, str) or not isinstance(arguments, str | dict):
                return broken(len(listed), "a call needs a name, and arguments as an object or a string")
            calls.append((name, arguments))
    if not calls:
        return broken(1, "the JSON contains no call") if listed else NO_CALL
    return calls_of_texts(calls, len(calls), "")


def _written(text: str) -> str | None:
    """Return the JSON that may contain calls, or None."""
    after = re.search(r"</think>([\s\S]*)", text)
    if after:
        thought = after[1].strip()
        if _is_json(thought):
            return thought
        if (found := _first_place(thought)) is not None:
            return found
    if (found := _first_place(text)) is not None:
        return found
    if text.strip().startswith("[") and (_is_json(text) or all(word in text for word in ("{", "name", "arguments"))):
        return text
    return None


def _first_place(text: str) -> str | None:
    # Stop at the last end tag: each start tag after it would be searched up to the end of the text.
    end = text.rfind("</tool_call>") + len("</tool_call>")
    parts = (part for place in _PLACES for part in place.findall(text, 0, end if place is _PLACES[2] else len(text)))
    return next(filter(_is_json, parts), None)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:  # also for a number with more digits than Python converts
        return False
    return True

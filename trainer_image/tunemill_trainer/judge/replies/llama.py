"""`{"name": …, "parameters": {…}}`, several with `; ` between them, also after `<|python_tag|>`: Llama 3 and 4.

The server finds JSON objects anywhere in the reply and ignores text around them. If an object has no name or no
arguments, or a brace does not start a JSON object, it returns the whole reply as text.
"""

import json
import re
from collections.abc import Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.data.values import refuse_constant
from tunemill_trainer.judge.replies.parsed import (
    NO_CALL,
    TOO_DEEP,
    ParsedReply,
    broken,
    call_of,
    not_json,
    read_each,
)

BEGIN = "<|python_tag|>"

_DECODER = json.JSONDecoder(parse_constant=refuse_constant)
_NAMED = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"')


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    objects: list[JsonValue] = []
    end = -1
    for brace in re.finditer(r"\{", text):
        # As in the server, an object directly after another one is ignored.
        if brace.start() <= end:
            continue
        try:
            value, end = _DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError) as error:
            return broken(len(objects) + 1, _sentence(error)) if _begins_call(text) else NO_CALL
        objects.append(value)
    if not objects:
        return broken(1, "no JSON object follows <|python_tag|>") if BEGIN in text else NO_CALL
    reply = read_each(objects, lambda value: call_of(value, ("arguments", "parameters")))
    return NO_CALL if reply.error and not _begins_call(text) else reply


def _begins_call(text: str) -> bool:
    """Return whether an invalid reply is likely a call; plain text can contain objects, too."""
    return BEGIN in text or _NAMED.search(text) is not None


def _sentence(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return not_json(error)
    return TOO_DEEP if isinstance(error, RecursionError) else str(error)

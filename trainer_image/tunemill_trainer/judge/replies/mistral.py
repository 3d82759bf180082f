"""`[TOOL_CALLS] [{"name": …, "arguments": {…}}]`, or since tokenizer version 11 `[TOOL_CALLS]name{…}` a call: Mistral.

Text before the first mark does not matter. With the list there is one mark, and nothing but the list follows it.
"""

import re

from tunemill_trainer.data.rows import Call
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, call_of, read_each, read_json

BEGIN = "[TOOL_CALLS]"

_MARKS = re.compile(r"\[CALL_ID\]|\[ARGS\]")
"""Some versions of the tokenizer have the call's id, or a mark, between name and arguments."""


def read(text: str) -> ParsedReply:
    """Return the calls of a reply."""
    if BEGIN not in text:
        return NO_CALL
    parts = [part.strip() for part in text.split(BEGIN)[1:]]
    if parts[0].startswith(("[", "{")):
        return _listed(parts)
    return read_each(parts, _named)


def _listed(parts: list[str]) -> ParsedReply:
    if len(parts) > 1:
        return broken(len(parts), f"expected one {BEGIN} before the list of calls, found {len(parts)}")
    try:
        calls = read_json(parts[0])
    except ValueError as error:
        return broken(1, error)
    if not isinstance(calls, list) or not calls:
        return broken(1, f"expected a list of calls after {BEGIN}")
    return read_each(calls, call_of)


def _named(part: str) -> Call:
    name, brace, arguments = part.partition("{")
    name = _MARKS.split(name)[0].strip()
    if not brace or not name:
        raise ValueError(f"expected a name and arguments after {BEGIN}")
    return call_of({"name": name, "arguments": read_json(brace + arguments)})

"""`<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}]<|END_ACTION|>`: Command R7B and A.

The fields of a call must have this order. Reasoning is `<|START_THINKING|>…<|END_THINKING|>`.
"""

import re
from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, calls_of_texts

BEGIN = re.compile(r"<\|START_(?:ACTION|THINKING|RESPONSE|TEXT)\|>")

_ACTION = re.compile(r"<\|START_ACTION\|>(.*?)(?:<\|END_ACTION\|>|\Z)", re.DOTALL)
_ID = re.compile(r'"tool_call_id"\s*:\s*"(?:[^"\\]|\\.)*"')
_NAME = re.compile(r'"tool_name"\s*:\s*"((?:[^"\\]|\\.)*)"')
_PARAMETERS = re.compile(r'"parameters"\s*:\s*(?P<first>\{\s*")?')
_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}]', re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    actions = _ACTION.findall(text)
    if not actions:
        return NO_CALL
    calls = [call for action in actions for call in _calls(action)]
    return calls_of_texts(calls, max(1, len(calls)), "no call has an id, a name and parameters, in this order")


def _calls(action: str) -> Iterator[tuple[str, JsonValue]]:
    at, filled = 0, False
    while begun := _ID.search(action, at):
        name = _NAME.search(action, begun.end())
        if name is None:
            # After a call with parameters it is another call; otherwise the server considers it part of the last call.
            if filled:
                yield "", ""
            return
        parameters = _PARAMETERS.search(action, name.end())
        filled = parameters is not None
        if parameters is None or not parameters["first"]:
            at = name.end()
            yield name[1], ""
            continue
        start = parameters.start("first")
        at = _end_of_object(action, start)
        yield name[1], action[start:at]


def _end_of_object(text: str, start: int) -> int:
    depth = 0
    for part in _PART.finditer(text, start):
        if part[0] in "{}":
            depth += 1 if part[0] == "{" else -1
            if not depth:
                return part.end()
    return len(text)

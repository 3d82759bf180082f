"""`<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}]<|END_ACTION|>`: Command R7B and A.

The fields of a call must stand in this order. Reasoning is `<|START_THINKING|>…<|END_THINKING|>`.
"""

import re
from collections.abc import Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, calls_of_texts

BEGIN = re.compile(r"<\|START_(?:ACTION|THINKING|RESPONSE|TEXT)\|>")

_ACTION = "<|START_ACTION|>"
_END = "<|END_ACTION|>"
_THOUGHT = re.compile(r"<\|START_THINKING\|>.*?(?:<\|END_THINKING\|>|\Z)", re.DOTALL)
_HEAD = re.compile(
    r'"tool_call_id"\s*:\s*"(?:[^"\\]|\\.)*"[^"]*"tool_name"\s*:\s*"((?:[^"\\]|\\.)*)"(?:[^"{}]*"parameters"\s*:\s*)?', re.DOTALL
)
_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[{}]', re.DOTALL)


def read(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    text = _THOUGHT.sub("", text)
    if _ACTION not in text:
        return NO_CALL
    action = text.partition(_ACTION)[2].partition(_END)[0]
    calls: list[tuple[str, JsonValue]] = []
    at = 0
    while head := _HEAD.search(action, at):
        at = _end_of_object(action, head.end()) if action.startswith("{", head.end()) else head.end()
        calls.append((head[1], action[head.end() : at]))
    return calls_of_texts(calls, max(1, action.count('"tool_name"')), "no call has an id, a name and parameters, in this order")


def _end_of_object(text: str, start: int) -> int:
    depth = 0
    for part in _PART.finditer(text, start):
        if part[0] in "{}":
            depth += 1 if part[0] == "{" else -1
            if not depth:
                return part.end()
    return len(text)

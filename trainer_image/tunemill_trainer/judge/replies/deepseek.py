"""`<｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`: DeepSeek V3.1.

V3 and R1 write the JSON in a code fence. Arguments with line breaks are not found.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, calls_of_texts

BEGIN = "<｜tool▁calls▁begin｜>"
V3_BEGIN = re.compile(r"<｜tool▁sep｜>[^\n]*\n```json")

_V3_CALL = re.compile("<｜tool▁call▁begin｜>(.*)<｜tool▁sep｜>(.*)\n```json\n(.*)\n```<｜tool▁call▁end｜>")
_CALL = re.compile("<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>")
_CALL_BEGIN = "<｜tool▁call▁begin｜>"


def read_v3(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of DeepSeek V3 or R1."""
    if BEGIN not in text:
        return NO_CALL
    found = _V3_CALL.findall(text)
    if any(kind != "function" for kind, _, _ in found):
        return broken(text.count(_CALL_BEGIN), "the type of a call is not function")
    return _calls(text, [(name, arguments) for _, name, arguments in found])


def read_v31(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of DeepSeek V3.1."""
    return _calls(text, _CALL.findall(text)) if BEGIN in text else NO_CALL


def _calls(text: str, found: list[tuple[str, str]]) -> ParsedReply:
    return calls_of_texts(found, text.count(_CALL_BEGIN), "no call has the form that the server expects")

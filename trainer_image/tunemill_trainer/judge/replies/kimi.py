"""`<|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{…}<|tool_call_end|>` in a section: Kimi K2.

The number of the call follows the name. Text after the section is ignored.
"""

import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = "<|tool_calls_section_begin|>"

_SECTION_END, _CALL, _ARGUMENTS = "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
_SCANNER = Scanner(
    {
        (State.TEXT, BEGIN): Transition(State.BEFORE_NAME),
        (State.BEFORE_NAME, _CALL): Transition(State.NAME, begins=True),
        (State.NAME, _ARGUMENTS): Transition(State.ARGUMENTS),
        (State.ARGUMENTS, "<|tool_call_end|>"): Transition(State.AFTER_CALL),
        (State.ARGUMENTS, _SECTION_END): Transition(State.BEFORE_NAME),
        (State.AFTER_CALL, _CALL): Transition(State.NAME, begins=True),
        (State.AFTER_CALL, _SECTION_END): Transition(State.BEFORE_NAME),
    }
)
_ID = re.compile(r".+:\d+")


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    found = _SCANNER.calls(text)
    for call in found:
        numbered = _ID.match(call.name.strip())
        if numbered:
            call.name = numbered[0].strip().split(":")[0].removeprefix("functions.")
        elif call.arguments:
            call.name = ""
    return as_calls(found, str.strip, tools)

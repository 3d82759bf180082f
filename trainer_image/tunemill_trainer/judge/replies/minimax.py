"""`<minimax:tool_call><invoke name="f"><parameter name="a">value</parameter></invoke></minimax:tool_call>`: MiniMax M2.

Names may have single quotes or none, and the outer tags are optional. Calls to other tools than the available ones are
dropped. Values are plain text including spaces, converted to the types in the tool's schema.
"""

import json
import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = re.compile(r"<minimax:tool_call>|<invoke name=")

_START, _END = "<minimax:tool_call>", "</minimax:tool_call>"
_SCANNER = Scanner(
    {
        (State.TEXT, _START): Transition(State.BEFORE_NAME),
        (State.BEFORE_NAME, _END): Transition(State.TEXT),
        (State.AFTER_CALL, _END): Transition(State.TEXT),
        (State.ARGUMENTS, "</invoke>"): Transition(State.AFTER_CALL),
        **{
            (state, f"<invoke name={quote}"): Transition(State.NAME, begins=True)
            for state in (State.TEXT, State.BEFORE_NAME, State.AFTER_CALL)
            for quote in ('"', "'", "")
        },
        **{(State.NAME, f"{quote}>"): Transition(State.ARGUMENTS) for quote in ('"', "'", "")},
    },
    inert=("<parameter name=", "</parameter>", "<think>", "</think>"),
)
_PARAMETER = re.compile(
    r"""<\s*parameter\s+name\s*=\s*(?:"([^"]*)"|'([^']*)'|([^>\s]+))\s*>"""
    r"(.*?)(?:<\s*/\s*parameter\s*>|(?=<\s*parameter\s+name\s*=))",
    re.DOTALL,
)


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    return as_calls(_SCANNER.calls(text), _to_json, tools, only_offered=True)


def _to_json(arguments: str) -> str:
    found = {}
    for *names, value in _PARAMETER.findall(arguments):
        if name := "".join(names).strip():
            found[name] = value
    return json.dumps(found, ensure_ascii=False)

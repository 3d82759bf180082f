"""`<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`: Qwen3-Coder.

Also Nemotron 3 and Seed-OSS. The tags around functions are optional. An unclosed parameter ends at the next one; an
unclosed last parameter is dropped. One line break is removed at each end of a value. Values are converted to the types
in the tool's schema.
"""

import json
import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = re.compile(r"<tool_call>\s*<function=|<function=[^<>]*>\s*(?:<parameter=|</function>)")
SEED_BEGIN = "<seed:tool_call>"

_PARAMETER = re.compile(r"<\s*parameter\s*=\s*([^>]*)>(.*?)(?:<\s*/\s*parameter\s*>|(?=<\s*parameter\s*=))", re.DOTALL)


def _scanner(namespace: str) -> Scanner:
    start, end = f"<{namespace}tool_call>", f"</{namespace}tool_call>"
    return Scanner(
        {
            (State.TEXT, start): Transition(State.BEFORE_NAME, begins=True),
            (State.TEXT, "<function="): Transition(State.NAME, begins=True),
            (State.BEFORE_NAME, end): Transition(State.TEXT),
            (State.BEFORE_NAME, "<function="): Transition(State.NAME),
            (State.NAME, ">"): Transition(State.ARGUMENTS),
            (State.NAME, "</function>"): Transition(State.AFTER_CALL),
            (State.ARGUMENTS, "</function>"): Transition(State.AFTER_CALL),
            (State.AFTER_CALL, end): Transition(State.TEXT),
            (State.AFTER_CALL, start): Transition(State.BEFORE_NAME, begins=True),
            (State.AFTER_CALL, "<function="): Transition(State.NAME, begins=True),
        },
        inert=("<parameter=", "</parameter>", f"<{namespace}think>", f"</{namespace}think>"),
    )


_QWEN, _SEED = _scanner(""), _scanner("seed:")


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of Qwen3-Coder."""
    return as_calls(_QWEN.calls(text), _to_json, tools)


def read_seed(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of Seed-OSS, with `<seed:tool_call>` as outer tags."""
    return as_calls(_SEED.calls(text), _to_json, tools)


def _to_json(arguments: str) -> str:
    found = {name: value.removeprefix("\n").removesuffix("\n") for name, value in _PARAMETER.findall(arguments)}
    return json.dumps(found, ensure_ascii=False)

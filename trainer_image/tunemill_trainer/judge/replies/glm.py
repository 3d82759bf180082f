"""`<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>`: GLM-4.5 and newer, Ling 3.

Calls to other tools than the available ones are dropped. Values are plain text, converted to the types in the tool's
schema.
"""

import json
import re
from collections.abc import Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = re.compile(r"<tool_call>\s*\w[^<>{}\[\]]*(?:<arg_key>|</tool_call>)")

_SCANNER = Scanner(
    {
        (State.TEXT, "<tool_call>"): Transition(State.NAME, begins=True),
        (State.NAME, "<arg_key>"): Transition(State.ARGUMENTS, kept=True),
        (State.NAME, "</tool_call>"): Transition(State.TEXT),
        (State.ARGUMENTS, "</tool_call>"): Transition(State.TEXT),
    }
)
_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    return as_calls(_SCANNER.calls(text), _to_json, tools, only_offered=True)


def _to_json(arguments: str) -> str:
    found = {key.strip(): value for key, value in _ARGUMENT.findall(arguments)}
    return json.dumps(found, ensure_ascii=False)

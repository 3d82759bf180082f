"""ms-swift's format: `messages` with the roles tool_call and tool_response; or `query` and `response`.

https://swift.readthedocs.io/en/latest/Instruction/Agent-support.html
https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html
A turn may have `loss`. In the older form, `history` lists pairs of a query and its response.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool

_ROLES = ("tool_call", "tool_response")


def matches(value: JsonObject) -> bool:
    """Return whether a row has the roles of this format, or the fields of its older form."""
    turns = value.get("messages")
    if isinstance(turns, list):
        return any(isinstance(turn, dict) and turn.get("role") in _ROLES for turn in turns)
    return "query" in value and "response" in value


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    if value.get("messages") is not None or "response" not in value:
        return openai.read(value)
    with Within("system"):
        prompt = text_of(value.get("system"))
    messages = [Message(Role.SYSTEM, prompt)] if prompt else []
    for index, pair in enumerate(_history(value.get("history"))):
        with Within("history", index):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError(Rule.FORMAT, "expected a pair of a query and its response")
            messages += _pair(*pair)
    messages += _pair(value.get("query"), value["response"])
    return messages, openai.tools_of(value)


def _history(value: JsonValue) -> list[JsonValue]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(Rule.FORMAT, "expected `history` to be a list of pairs", "history")
    return value


def _pair(query: JsonValue, response: JsonValue) -> list[Message]:
    return [Message(Role.USER, text_of(query)), Message(Role.ASSISTANT, text_of(response))]

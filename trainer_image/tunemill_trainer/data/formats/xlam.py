"""The xLAM format: `query`, and `answers` and `tools` as JSON strings. Parameters of tools are not a JSON schema.

https://huggingface.co/datasets/Salesforce/xlam-function-calling-60k
https://huggingface.co/datasets/MadeAgents/xlam-irrelevance-7.5k
If no tool fits the query, `answers` is empty. The data has no text for this case, so the assistant replies `NO_TOOL`.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import read_value

NO_TOOL = "None of the available tools can answer this."
"""The assistant's reply if `answers` is empty."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return "query" in value and "answers" in value


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row: a request and its calls.

    Raises:
        RowError: the row cannot be read.
    """
    if not matches(value):
        raise RowError(Rule.FORMAT, "expected the fields `query` and `answers`")
    with Within("answers"):
        answers = _list(value["answers"], Rule.BROKEN_CALL)
    with Within("tools"):
        tools = read_tools(_list(value.get("tools"), Rule.BROKEN_TOOL))
    calls = []
    for index, answer in enumerate(answers):
        with Within("answers", index):
            calls.append(read_call(answer))
    with Within("query"):
        request = text_of(value["query"])
    reply = "" if calls else NO_TOOL
    return [Message(Role.USER, request), Message(Role.ASSISTANT, reply, calls=tuple(calls))], tools


def _list(value: JsonValue, rule: Rule) -> list[JsonValue]:
    if isinstance(value, str):
        value = read_value(value, rule) if value.strip() else None
    if value is None:
        return []
    return value if isinstance(value, list) else [value]

"""The smallest format: `user_content`, `tool_name` and `tool_arguments`, as in Google's FunctionGemma guide.

https://ai.google.dev/gemma/docs/functiongemma
The tools are the same for all rows and come from spec.tools (`--tools` on the command line), unless a row has `tools`.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import text_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools

INSTRUCTION = "You are a model that can do function calling with the following functions"
"""The system message of the guide's rows, which FunctionGemma was trained with."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return "user_content" in value and "tool_name" in value


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row: a system message, a request and the call.

    Raises:
        RowError: the row cannot be read.
    """
    if not matches(value):
        raise RowError(Rule.FORMAT, "expected the fields `user_content`, `tool_name` and `tool_arguments`")
    call: dict[str, JsonValue] = {"name": value["tool_name"], "arguments": value.get("tool_arguments")}
    with Within("user_content"):
        request = text_of(value["user_content"])
    with Within("tool_arguments"):
        called = read_call(call)
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    messages = [
        Message(Role.SYSTEM, INSTRUCTION),
        Message(Role.USER, request),
        Message(Role.ASSISTANT, "", calls=(called,)),
    ]
    return messages, tools

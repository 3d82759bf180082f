"""OpenAI's fine-tuning format: `messages` with `tool_calls`, and `tools`; also the older `function_call`.

https://platform.openai.com/docs/guides/supervised-fine-tuning
LLaMA-Factory's newer rows have the same turns with parts of the types text, reasoning and tool_call:
https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

from tunemill_trainer.data.findings import Within
from tunemill_trainer.data.formats.turns import message_of, text_of, turns_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools


def has_calls(row: JsonObject) -> bool:
    """Return whether turns carry calls in fields of their own."""
    turns = row.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and (turn.get("tool_calls") or turn.get("function_call")) for turn in turns
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: saying what is wrong.
    """
    messages = read_turns(value, "messages")
    if messages[0].role is not Role.SYSTEM:
        with Within("system"):
            prompt = text_of(value.get("system"))
        messages = [Message(Role.SYSTEM, prompt), *messages] if prompt else messages
    return messages, tools_of(value)


def read_turns(value: JsonObject, field: str) -> list[Message]:
    """Return the turns of one field.

    Raises:
        RowError: saying what is wrong.
    """
    messages = []
    for index, turn in enumerate(turns_of(value, field)):
        with Within(field, index):
            messages.append(message_of(turn))
    return messages


def tools_of(value: JsonObject) -> tuple[Tool, ...]:
    """Return the tools of a row, which stand in `tools`, or in older files in `functions`.

    Raises:
        RowError: BROKEN_TOOL.
    """
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    if not tools:
        with Within("functions"):
            tools = read_tools(value.get("functions"))
    return tools

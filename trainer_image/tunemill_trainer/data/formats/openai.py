"""OpenAI's fine-tuning format: `messages` with `tool_calls`, and `tools`; also the older `function_call`.

https://platform.openai.com/docs/guides/supervised-fine-tuning
LLaMA-Factory's newer format has the same turns with content parts of type text, reasoning or tool_call:
https://github.com/hiyouga/LLaMA-Factory/tree/main/data
"""

from tunemill_trainer.data.findings import Within
from tunemill_trainer.data.formats.turns import message_of, text_of, turns_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools


def has_calls(row: JsonObject) -> bool:
    """Return whether turns have calls in `tool_calls` or `function_call`."""
    turns = row.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and (turn.get("tool_calls") or turn.get("function_call")) for turn in turns
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
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
        RowError: the row cannot be read.
    """
    messages = []
    for index, turn in enumerate(turns_of(value, field)):
        with Within(field, index):
            messages.append(message_of(turn))
    return messages


def tools_of(value: JsonObject) -> tuple[Tool, ...]:
    """Return the tools of a row, from `tools`, or `functions` in older files.

    Raises:
        RowError: BROKEN_TOOL.
    """
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    if not tools:
        with Within("functions"):
            tools = read_tools(value.get("functions"))
    return tools

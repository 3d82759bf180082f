"""Anthropic's Messages API: `content` as blocks of type text, thinking, tool_use or tool_result, and a `system` field.

https://docs.anthropic.com/en/api/messages
Tool results are blocks of user turns. The schema of a tool is in `input_schema`.
"""

from collections.abc import Iterator

from pydantic import JsonValue

from tunemill_trainer.data.findings import Within
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.formats.turns import (
    answer_of,
    content_in,
    message_of,
    role_name_of,
    role_of,
    text_of,
    turns_of,
)
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import identifier_of

_HIDDEN = "redacted_thinking"
"""Encrypted reasoning."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has blocks that no other format has."""
    turns = value.get("messages")
    return isinstance(turns, list) and any(
        isinstance(block, dict) and block.get("type") in ("tool_use", "tool_result")
        for turn in turns
        if isinstance(turn, dict) and isinstance(turn.get("content"), list)
        for block in _blocks(turn["content"])
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    with Within("system"):
        prompt = text_of(value.get("system"))
    messages = [Message(Role.SYSTEM, prompt)] if prompt else []
    for index, turn in enumerate(turns_of(value, "messages")):
        with Within("messages", index):
            messages += _turn(turn)
    return messages, openai.tools_of(value)


def _turn(turn: JsonObject) -> Iterator[Message]:
    """Yield the messages of a turn; the tool results in a user turn come before its text."""
    content = content_in(turn)
    blocks = _blocks(content)
    if isinstance(content, list):
        blocks = [block for block in blocks if not (isinstance(block, dict) and block.get("type") == _HIDDEN)]
        turn = {**turn, "content": blocks}
    if role_of(role_name_of(turn)) is not Role.USER:
        yield message_of(turn)
        return
    results = [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_result"]
    for block in results:
        with Within("content"):
            yield Message(Role.TOOL, answer_of(block.get("content")), answers_to=identifier_of(block))
    rest = [block for block in blocks if block not in results]
    if rest or not results:
        yield message_of({**turn, "content": rest} if isinstance(content, list) else turn)


def _blocks(content: JsonValue) -> list[JsonValue]:
    return content if isinstance(content, list) else []

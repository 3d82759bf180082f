"""What the formats share that list turns: the turns of a row, who speaks in them, and what is said."""

from collections.abc import Mapping
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import JsonObject, Role
from tunemill_trainer.data.values import read_object, refuse

OPENAI_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
ROLES = OPENAI_ROLES | {
    "human": Role.USER,
    "gpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "function_call": Role.ASSISTANT,
    "observation": Role.TOOL,
    "function_response": Role.TOOL,
    "ipython": Role.TOOL,
}
"""Of the formats whose turns stand in `conversations`."""


def turns_of(row: JsonObject, *fields: str) -> list[JsonObject]:
    """Return the turns of a row, which stand in the first of the fields that it has.

    Raises:
        RowError: FORMAT.
    """
    field = next((field for field in fields if row.get(field) is not None), fields[0])
    turns = row.get(field)
    if not isinstance(turns, list) or not turns:
        raise RowError(Rule.FORMAT, f"expected a field `{field}` with a list of turns")
    return [read_object(turn, Rule.FORMAT, f"a turn of `{field}`") for turn in turns]


def role_of(speaker: JsonValue, roles: Mapping[str, Role]) -> Role:
    """Return who speaks.

    Raises:
        RowError: UNKNOWN_ROLE.
    """
    role = roles.get(str(speaker))
    if role is None:
        raise RowError(Rule.UNKNOWN_ROLE, f"unknown role {speaker!r}, expected one of {', '.join(roles)}")
    return role


def reasoning_of(turn: JsonObject) -> str:
    """Return what an assistant thinks first, which files have under several names."""
    found = (text_of(turn.get(name)) for name in ("reasoning_content", "reasoning", "thinking"))
    return next((text for text in found if text), "")


def text_of(content: JsonValue) -> str:
    """Return the text of a content that is a string, null or a list of text parts.

    Raises:
        RowError: FORMAT, for pictures and the like.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_of_part(part) for part in content)
    return refuse(Rule.FORMAT, f"expected a content of text, found {type(content).__name__}")


def _text_of_part(part: JsonValue) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return cast("str", part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    return refuse(Rule.FORMAT, f"expected contents of text, found a part of type {kind}")

"""What the formats share that list turns: the turns of a row, who speaks in them, and what is said."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.rows import JsonObject, Role
from tunemill_trainer.data.values import read_object, read_value, refuse, shortened

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
        found = json.dumps(turns) if field in row else "the fields " + ", ".join(sorted(row))
        raise RowError(Rule.FORMAT, f"expected a field `{field}` with a list of turns, found {shortened(found)}", field)
    read = []
    for index, turn in enumerate(turns):
        if isinstance(turn, dict):
            read.append(turn)
            continue
        with Within(field, index):
            read.append(read_object(turn, Rule.FORMAT, f"a turn of `{field}`"))
    return read


def with_turns(row: JsonObject) -> JsonObject:
    """Return a row whose turns are a list also where a table holds them as text."""
    packed = {field: row[field] for field in ("messages", "conversations") if isinstance(row.get(field), str)}
    unpacked: JsonObject = {}
    for field, text in packed.items():
        with suppress(RowError):
            unpacked[field] = read_value(cast("str", text), Rule.FORMAT)
    return row | unpacked if unpacked else row


def role_of(speaker: JsonValue, roles: Mapping[str, Role]) -> Role:
    """Return who speaks.

    Raises:
        RowError: UNKNOWN_ROLE.
    """
    role = roles.get(str(speaker))
    if role is None:
        raise RowError(
            Rule.UNKNOWN_ROLE, f"unknown role {shortened(repr(speaker))}, expected one of {', '.join(roles)}"
        )
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


def answer_of(content: JsonValue) -> str:
    """Return what a tool answers: a text, or any other value as JSON, as chat templates and clients write it.

    Raises:
        RowError: FORMAT, for pictures and the like.
    """
    if content is None or isinstance(content, str) or _is_parts(content):
        return text_of(content)
    return json.dumps(content, ensure_ascii=False)


def _is_parts(content: JsonValue) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _text_of_part(part: JsonValue) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return cast("str", part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    return refuse(Rule.FORMAT, f"expected contents of text, found a part of type {kind}")


def without_blank_lines(text: str) -> str:
    """Return the text's lines without the white space around them, and without those that have nothing else."""
    # A pattern for it takes time with the square of the white space.
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))

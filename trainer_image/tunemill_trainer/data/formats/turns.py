"""Functions for formats with lists of turns: the turns of a row, their roles, contents and calls, and loss masks."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data import reasoning
from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import printed
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role
from tunemill_trainer.data.tools import identifier_of, read_call
from tunemill_trainer.data.values import read_object, read_value, refuse, shortened

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "bot": Role.ASSISTANT,
    "ai": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
    "observation": Role.TOOL,
    "function_response": Role.TOOL,
    "tool_response": Role.TOOL,
    "ipython": Role.TOOL,
}
"""The names of roles in all formats."""
CALLERS = ("function_call", "tool_call")
"""Roles of assistant turns that only contain a call or a list of calls."""

_LEARNT = ("weight", "loss_weight", "loss", "train", "training")
"""Fields that include a turn in the loss: OpenAI's weight, LLaMA-Factory's loss_weight, the loss of AgentInstruct and
ms-swift, Axolotl's train and training. 0 and false exclude it."""
_MASKED = ("mask", "masked")
"""Fields that exclude a turn from the loss, as in torchtune. 1 and true exclude it."""
_LOSS_FIELDS = _LEARNT + _MASKED
_LISTS = ("messages", "conversations", "prompt", "completion", "traj", "input", "output")
"""The fields that contain turns, in any format."""
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")


def turns_of(row: JsonObject, *fields: str) -> list[JsonObject]:
    """Return the turns of a row, from the first of the given fields that it has.

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


def with_parsed_turns(row: JsonObject) -> JsonObject:
    """Return a row with its turns parsed, if a table has them as JSON strings."""
    packed = {field: row[field] for field in _LISTS if isinstance(row.get(field), str)}
    unpacked: JsonObject = {}
    for field, text in packed.items():
        if str(text).lstrip()[:1] != "[":
            continue
        with suppress(RowError):
            unpacked[field] = read_value(cast("str", text), Rule.FORMAT)
    return row | unpacked if unpacked else row


def role_of(speaker: JsonValue) -> Role:
    """Return the role for a name.

    Raises:
        RowError: UNKNOWN_ROLE.
    """
    role = ROLES.get(str(speaker)) or ROLES.get(str(speaker).lower())
    if role is not None:
        return role
    if speaker in CALLERS:
        return Role.ASSISTANT
    expected = ", ".join((*ROLES, *CALLERS))
    raise RowError(Rule.UNKNOWN_ROLE, f"unknown role {shortened(repr(speaker))}, expected one of {expected}")


def role_name_of(turn: JsonObject) -> JsonValue:
    """Return the name of a turn's role, from `role` or `from`."""
    return turn.get("role", turn.get("from"))


def content_in(turn: JsonObject) -> JsonValue:
    """Return the content of a turn, from `content` or `value`, unparsed."""
    return turn.get("content", turn.get("value"))


def is_learnt(turn: JsonObject) -> bool:
    """Return whether the loss includes an assistant turn.

    Raises:
        RowError: FORMAT, if a field is neither 0 nor 1, or two fields contradict each other.
    """
    if turn.keys().isdisjoint(_LOSS_FIELDS):
        return True
    included = {}
    for field in _LOSS_FIELDS:
        value = turn.get(field)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in {0, 1}:
            raise RowError(
                Rule.FORMAT, f"expected a turn's {field} to be 0 or 1, found {shortened(repr(value))}", field
            )
        included[field] = bool(value) is (field in _LEARNT)
    if len(set(included.values())) > 1:
        raise RowError(Rule.FORMAT, f"the fields {' and '.join(included)} of a turn contradict each other")
    return all(included.values())


def message_of(turn: JsonObject) -> Message:
    """Convert a turn whose calls are in separate fields or content parts.

    Raises:
        RowError: the turn cannot be read.
    """
    speaker, raw = role_name_of(turn), content_in(turn)
    role = role_of(speaker)
    if role is Role.TOOL:
        return Message(role, answer_of(raw), name=text_of(turn.get("name")), answers_to=identifier_of(turn))
    if role is not Role.ASSISTANT:
        return Message(role, text_of(raw))
    if speaker in CALLERS:
        thought, text = reasoning.split(answer_of(raw))
        calls, content = calls_of(read_value(text, Rule.BROKEN_CALL)), ""
    else:
        content, thought, calls = parsed_content(raw)
        if not content and turn.get("refusal"):
            with Within("refusal"):
                content = text_of(turn["refusal"])
    for field in ("tool_calls", "function_call"):
        if turn.get(field):
            with Within(field):
                calls += calls_of(turn[field])
    return Message(role, content, reasoning=reasoning_of(turn) or thought, calls=tuple(calls), learnt=is_learnt(turn))


def calls_of(value: JsonValue) -> list[Call]:
    """Parse one call, a list of calls, or null; also as a string with JSON or the printed objects of OpenAI's client.

    Raises:
        RowError: BROKEN_CALL.
    """
    if isinstance(value, str):
        value = printed.calls(value) if printed.BEGIN in value else read_value(value, Rule.BROKEN_CALL)
    if not isinstance(value, list):
        return [read_call(value)] if value else []
    calls = []
    for index, call in enumerate(value):
        with Within("", index):
            calls += [read_call(call)] if call else []
    return calls


def reasoning_of(turn: JsonObject) -> str:
    """Return the reasoning of an assistant turn, from the first of several fields."""
    found = (text_of(turn.get(name)) for name in _REASONING)
    return next((text for text in found if text), "")


def parsed_content(content: JsonValue) -> tuple[str, str, list[Call]]:
    """Return the text, reasoning and calls of an assistant's content, which may be a list of parts.

    Raises:
        RowError: FORMAT, for images and other parts; BROKEN_CALL.
    """
    if not isinstance(content, list):
        return text_of(content), "", []
    texts, thought, calls = [], [], []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        with Within("content", index):
            if isinstance(part, dict) and kind in ("reasoning", "thinking"):
                thought.append(_of_part(part, ("thinking", "reasoning", "text", "value")))
            elif isinstance(part, dict) and kind in ("tool_call", "function_call"):
                calls += calls_of(part.get("value") or part)
            elif isinstance(part, dict) and kind == "tool_use":
                calls.append(read_call(part))
            else:
                texts.append(_text_of_part(part))
    return "".join(texts), "\n\n".join(thought), calls


def text_of(content: JsonValue) -> str:
    """Return the text of a content that is a string, null or a list of text parts.

    Raises:
        RowError: FORMAT, for images and other parts.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_text_of_part(part) for part in content)
    return refuse(Rule.FORMAT, f"expected text as content, found {type(content).__name__}")


def answer_of(content: JsonValue) -> str:
    """Return a tool's response as text. Other values are written as JSON, as chat templates and clients do.

    Raises:
        RowError: FORMAT, for images and other parts.
    """
    if content is None or isinstance(content, str) or _is_parts(content):
        return text_of(content)
    return json.dumps(content, ensure_ascii=False)


def _is_parts(content: JsonValue) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _text_of_part(part: JsonValue) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        return _of_part(part, ("text", "value", "refusal"))
    return refuse(Rule.FORMAT, f"expected text parts as content, found a part of type {type(part).__name__}")


def _of_part(part: JsonObject, fields: Sequence[str]) -> str:
    """Return the text of a part, from the first of the given fields that it has."""
    text = next((part[field] for field in fields if isinstance(part.get(field), str)), None)
    if text is None:
        return refuse(Rule.FORMAT, f"expected text parts as content, found a part of type {part.get('type')}")
    return cast("str", text)


def without_blank_lines(text: str) -> str:
    """Strip all lines of a text, and remove empty ones."""
    # A regular expression would take quadratic time for long white space.
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))

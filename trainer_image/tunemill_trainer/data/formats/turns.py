"""What the formats share that list turns: the turns of a row, who speaks in them, what is said, and what is learnt."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data import thoughts
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
"""Who speaks, in the words of all formats."""
CALLERS = ("function_call", "tool_call")
"""Roles of assistant turns that are a call, or a list of calls, and nothing else."""

_LEARNT = ("weight", "loss_weight", "loss", "train", "training")
"""Fields that say of a turn whether it is learnt: OpenAI's weight, LLaMA-Factory's loss_weight, the loss of
AgentInstruct and ms-swift, Axolotl's train and training. 0 and false mean no."""
_MASKED = ("mask", "masked")
"""The same the other way round, as torchtune has it: what is masked is not learnt."""
_WISHES = _LEARNT + _MASKED
_LISTS = ("messages", "conversations", "prompt", "completion", "traj", "input", "output")
"""Fields with the turns of some format."""
_REASONING = ("reasoning_content", "reasoning", "thinking", "thought")


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
    packed = {field: row[field] for field in _LISTS if isinstance(row.get(field), str)}
    unpacked: JsonObject = {}
    for field, text in packed.items():
        if str(text).lstrip()[:1] != "[":
            continue
        with suppress(RowError):
            unpacked[field] = read_value(cast("str", text), Rule.FORMAT)
    return row | unpacked if unpacked else row


def role_of(speaker: JsonValue) -> Role:
    """Return who speaks.

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


def speaker_of(turn: JsonObject) -> JsonValue:
    """Return what a turn says of who speaks."""
    return turn.get("role", turn.get("from"))


def said_in(turn: JsonObject) -> JsonValue:
    """Return what is said in a turn, in whatever form."""
    return turn.get("content", turn.get("value"))


def learnt_in(turn: JsonObject) -> bool:
    """Return whether the loss is on what an assistant says in a turn; the data may say no of it.

    Raises:
        RowError: FORMAT, for a value that says neither yes nor no, and for two that contradict each other.
    """
    if turn.keys().isdisjoint(_WISHES):
        return True
    wishes = {}
    for field in _WISHES:
        value = turn.get(field)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in {0, 1}:
            raise RowError(
                Rule.FORMAT, f"expected a turn's {field} to be 0 or 1, found {shortened(repr(value))}", field
            )
        wishes[field] = bool(value) is (field in _LEARNT)
    if len(set(wishes.values())) > 1:
        raise RowError(Rule.FORMAT, f"the fields {' and '.join(wishes)} of a turn contradict each other")
    return all(wishes.values())


def message_of(turn: JsonObject) -> Message:
    """Return a turn whose calls, if it has any, stand in fields or parts of their own.

    Raises:
        RowError: saying what is wrong.
    """
    speaker, said = speaker_of(turn), said_in(turn)
    role = role_of(speaker)
    if role is Role.TOOL:
        return Message(role, answer_of(said), name=text_of(turn.get("name")), answers_to=identifier_of(turn))
    if role is not Role.ASSISTANT:
        return Message(role, text_of(said))
    if speaker in CALLERS:
        thought, text = thoughts.split(answer_of(said))
        calls, content = calls_of(read_value(text, Rule.BROKEN_CALL)), ""
    else:
        content, thought, calls = spoken(said)
        if not content and turn.get("refusal"):
            with Within("refusal"):
                content = text_of(turn["refusal"])
    for field in ("tool_calls", "function_call"):
        if turn.get(field):
            with Within(field):
                calls += calls_of(turn[field])
    return Message(role, content, reasoning=reasoning_of(turn) or thought, calls=tuple(calls), learnt=learnt_in(turn))


def calls_of(value: JsonValue) -> list[Call]:
    """Return one call, several, or none for null; also as text: as JSON, or as OpenAI's client prints its objects.

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
    """Return what an assistant thinks first, which files have under several names."""
    found = (text_of(turn.get(name)) for name in _REASONING)
    return next((text for text in found if text), "")


def spoken(content: JsonValue) -> tuple[str, str, list[Call]]:
    """Return what the parts of an assistant's content say, think and call.

    Raises:
        RowError: FORMAT, for pictures and the like; BROKEN_CALL.
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
    if isinstance(part, dict):
        return _of_part(part, ("text", "value", "refusal"))
    return refuse(Rule.FORMAT, f"expected contents of text, found a part of type {type(part).__name__}")


def _of_part(part: JsonObject, fields: Sequence[str]) -> str:
    """Return the text of a part, which stands in the first of the fields that it has."""
    text = next((part[field] for field in fields if isinstance(part.get(field), str)), None)
    if text is None:
        return refuse(Rule.FORMAT, f"expected contents of text, found a part of type {part.get('type')}")
    return cast("str", text)


def without_blank_lines(text: str) -> str:
    """Return the text's lines without the white space around them, and without those that have nothing else."""
    # A pattern for it takes time with the square of the white space.
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))

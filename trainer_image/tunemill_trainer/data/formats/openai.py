"""OpenAI's fine-tuning format: `messages` with `tool_calls`, and `tools`; also the older `function_call`.

https://platform.openai.com/docs/guides/supervised-fine-tuning
"""

from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import OPENAI_ROLES, answer_of, reasoning_of, role_of, text_of, turns_of
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import shortened


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
    turns = turns_of(value, "messages")
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    if not tools:
        with Within("functions"):
            tools = read_tools(value.get("functions"))
    messages: list[Message] = []
    open_calls: dict[str, str] = {}
    answered: set[str] = set()
    for index, turn in enumerate(turns):
        with Within("messages", index):
            after_call = bool(messages) and (bool(messages[-1].calls) or messages[-1].role is Role.TOOL)
            message = _message(turn, open_calls, answered, after_call=after_call)
            if message.role is not Role.TOOL and open_calls:
                raise _unanswered(open_calls)
            messages.append(message)
            for identifier, name in _call_ids(turn, message):
                if identifier in open_calls:
                    raise RowError(Rule.DUPLICATE_CALL_ID, f"two calls of an assistant turn have the id {identifier}")
                open_calls[identifier] = name
                answered.discard(identifier)  # some files begin to count again with every turn
    if open_calls and messages[-1].role is Role.TOOL:
        raise _unanswered(open_calls)
    return messages, tools


def _unanswered(open_calls: dict[str, str]) -> RowError:
    return RowError(Rule.UNANSWERED_CALL, f"the call {next(iter(open_calls))} has no tool message with its id")


def _message(turn: JsonObject, open_calls: dict[str, str], answered: set[str], *, after_call: bool) -> Message:
    role = role_of(turn.get("role"), OPENAI_ROLES)
    content = answer_of(turn.get("content")) if role is Role.TOOL else text_of(turn.get("content"))
    if role is Role.ASSISTANT:
        weight = turn.get("weight")
        if weight is not None and (not isinstance(weight, int | float) or weight not in {0, 1}):
            raise RowError(
                Rule.FORMAT, f"expected a turn's weight to be 0 or 1, found {shortened(repr(weight))}", "weight"
            )
        calls = tuple(_calls(turn))
        return Message(role, content, reasoning=reasoning_of(turn), calls=calls, learnt=weight != 0)
    if role is Role.TOOL:
        name = text_of(turn.get("name"))
        identifier = turn.get("tool_call_id")
        if isinstance(identifier, str) and identifier:
            if identifier in open_calls:
                name = open_calls.pop(identifier)
            elif identifier in answered:
                raise RowError(Rule.DUPLICATE_CALL_ID, f"two tool messages answer the call {identifier}")
            elif after_call:  # else it is the order that is wrong
                raise RowError(Rule.UNKNOWN_CALL_ID, f"a tool message answers {identifier}, which no open call has")
            answered.add(identifier)
        return Message(role, content, name=name)
    return Message(role, content)


def _calls(turn: JsonObject) -> list[Call]:
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RowError(Rule.BROKEN_CALL, "expected `tool_calls` to be a list", "tool_calls")
    read = []
    for index, call in enumerate(calls):
        with Within("tool_calls", index):
            read.append(read_call(call))
    if legacy := turn.get("function_call"):
        with Within("function_call"):
            read.append(read_call(legacy))
    return read


def _call_ids(turn: JsonObject, message: Message) -> list[tuple[str, str]]:
    """Return the ids of a turn's calls with the names of their tools; older data has none."""
    calls = cast("list[JsonValue]", turn.get("tool_calls") or [])
    return [
        (str(call["id"]), read.name)
        for call, read in zip(calls, message.calls, strict=False)
        if isinstance(call, dict) and call.get("id")
    ]

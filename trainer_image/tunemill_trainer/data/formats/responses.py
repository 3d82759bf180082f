"""The items of OpenAI's Responses API: messages, function_call, function_call_output and reasoning.

https://platform.openai.com/docs/api-reference/responses
Items are in `input` and `output`, as in a request and its response, or together in `items`.
"""

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats import openai
from tunemill_trainer.data.formats.turns import answer_of, is_learnt, message_of, text_of, turns_of
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import identifier_of, read_call
from tunemill_trainer.data.values import shortened

_KINDS = ("function_call", "function_call_output", "reasoning")
_FIELDS = ("input", "output", "items")


def matches(value: JsonObject) -> bool:
    """Return whether a row has items that are not messages, or messages with this API's `type`."""
    return any(
        isinstance(item, dict) and (item.get("type") in _KINDS or (item.get("type") == "message" and "role" in item))
        for field in _FIELDS
        if isinstance(value.get(field), list)
        for item in _list(value[field])
    )


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    with Within("instructions"):
        prompt = text_of(value.get("instructions"))
    messages = [Message(Role.SYSTEM, prompt)] if prompt else []
    fields = [field for field in _FIELDS if value.get(field) is not None]
    if not fields:
        raise RowError(Rule.FORMAT, "expected items in `input` and `output`, or in `items`")
    for field in fields:
        content = value[field]
        if isinstance(content, str):
            messages.append(Message(Role.ASSISTANT if field == "output" else Role.USER, content))
            continue
        for index, item in enumerate(turns_of(value, field)):
            with Within(field, index):
                messages.append(_message(item))
    return messages, openai.tools_of(value)


def _message(item: JsonObject) -> Message:
    kind = item.get("type", "message")
    if kind == "message":
        return message_of(item)
    if kind == "function_call":
        return Message(Role.ASSISTANT, "", calls=(read_call(item),), learnt=is_learnt(item))
    if kind == "function_call_output":
        return Message(Role.TOOL, answer_of(item.get("output")), answers_to=identifier_of(item))
    if kind == "reasoning":
        # It is merged with the following turn later.
        parts = [*_list(item.get("summary")), *_list(item.get("content"))]
        return Message(Role.ASSISTANT, "", reasoning=text_of(parts), learnt=is_learnt(item))
    raise RowError(Rule.FORMAT, f"expected messages, calls and their outputs, found an item {shortened(repr(kind))}")


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []

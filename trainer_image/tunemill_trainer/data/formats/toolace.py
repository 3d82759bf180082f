"""The ToolACE format: `system` with tools within prose, `conversations`, and calls as `[Tool name(argument=value)]`.

https://huggingface.co/datasets/Team-ACE/ToolACE
"""

import re
from collections.abc import Collection

from pydantic import JsonValue

from tunemill_trainer.data import balanced
from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import (
    answer_of,
    content_in,
    is_learnt,
    role_name_of,
    role_of,
    text_of,
    turns_of,
    without_blank_lines,
)
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_tools
from tunemill_trainer.data.values import read_value, shortened

_LIST_OF_TOOLS = re.compile(r"\[\s*\{\s*[\"'](?:name|type|function|description|parameters)[\"']")
_CALLS = re.compile(r"\[\s*[^\s\[\]{}()\"'][^\[\]{}()\"']*\(")
"""Matches the start of a list of calls; `[1]` is prose."""
_NAME = re.compile(r"[\s,]*([^\s,()\[\]{}\"'][^,()\[\]{}\"']*)\(")
_ARGUMENT = re.compile(r"\s*([^\s=\"'()\[\]{}]+)\s*=(.*)\Z", re.DOTALL)

_PROMPT_ABOUT_CALLS = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE)
    for pattern in (
        r"You should only return the function calls? in (?:the )?tools? calls? sections?\.?",
        r"Here is a list of functions in JSON format that you can invoke:?",
        r"Should you decide to return the function call\(s\)\s*[.,]?",
        r"(?:You MUST )?put (?:it|them) in the format of \[.*?\)\s*\]\.?",
        r"NO other text MUST be included\.?",
    )
)
"""Instructions about the format of calls in the prompts. They are removed, because the chat template uses another
format."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format, and tools in its prompt or calls in brackets."""
    turns, system = value.get("conversations"), value.get("system")
    if not isinstance(turns, list) or not isinstance(system, str) or value.get("tools"):
        return False
    texts = [str(turn.get("value", turn.get("content"))) for turn in turns if isinstance(turn, dict)]
    if any("<tool_call>" in text for text in texts):
        return False
    return _LIST_OF_TOOLS.search(system) is not None or any(_CALLS.match(text.strip()) for text in texts)


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    turns = turns_of(value, "conversations")
    with Within("system"):
        prompt, tools = _system(text_of(value.get("system")))
    messages = [Message(Role.SYSTEM, prompt)] if prompt else []
    for index, turn in enumerate(turns):
        with Within("conversations", index):
            role, content = role_of(role_name_of(turn)), content_in(turn)
            text = (answer_of(content) if role is Role.TOOL else text_of(content)).strip()
            calls = calls_in(text, {tool.name for tool in tools}) if role is Role.ASSISTANT else ()
            learnt = role is not Role.ASSISTANT or is_learnt(turn)
            messages.append(Message(role, "" if calls else text, calls=calls, learnt=learnt))
    if not tools:
        with Within("tools"):
            tools = read_tools(value.get("tools"))
    return messages, tools


def _system(text: str) -> tuple[str, tuple[Tool, ...]]:
    """Return the system prompt without tools and instructions about calls, and the tools."""
    tools: tuple[Tool, ...] = ()
    if begin := _LIST_OF_TOOLS.search(text):
        end = balanced.matching_end(text, begin.start())
        if end is None:
            raise RowError(Rule.BROKEN_TOOL, "the list of tools in `system` is not closed")
        tools = read_tools(read_value(text[begin.start() : end], Rule.BROKEN_TOOL))
        text = text[: begin.start()] + text[end:].lstrip(". ")
    for pattern in _PROMPT_ABOUT_CALLS:
        text = pattern.sub("", text)
    return without_blank_lines(text), tools


def calls_in(text: str, tools: Collection[str]) -> tuple[Call, ...]:
    """Return the calls of a turn that is a list of calls; () for prose.

    Args:
        text: the text of the turn.
        tools: the names of the row's tools. A bracket followed by one of them is certainly a call.

    Raises:
        RowError: BROKEN_CALL, if a list of calls cannot be parsed.
    """
    if not _CALLS.match(text):
        return ()
    if not text.endswith("]"):
        first = _NAME.match(text, 1)
        if first is not None and first.group(1).strip() in tools:
            raise RowError(Rule.BROKEN_CALL, f"expected a list of calls that ends with ], found {shortened(text)}")
        return ()
    inner, at, found = text[1:-1], 0, []
    while inner[at:].strip(" \n\t,"):
        head = _NAME.match(inner, at)
        end = balanced.matching_end(inner, head.end() - 1) if head else None
        if head is None or end is None:
            raise RowError(Rule.BROKEN_CALL, f"expected a call such as name(argument=value), found {shortened(text)}")
        found.append(Call(head.group(1).strip(), _arguments(head.group(1), inner[head.end() : end - 1])))
        at = end
    return tuple(found)


def _arguments(name: str, text: str) -> JsonObject:
    found: dict[str, JsonValue] = {}
    for part in balanced.parts(text):
        argument = _ARGUMENT.match(part)
        if argument is None:
            raise RowError(
                Rule.BROKEN_CALL, f"{name.strip()}: expected argument=value, found {shortened(part.strip())}"
            )
        found[argument.group(1)] = read_value(argument.group(2), Rule.BROKEN_CALL)
    return found

"""The Hermes family: turns whose text carries `<tool_call>`, `<tool_response>`, `<tools>` and `<think>`.

Covers NousResearch's Hermes data, ShareGPT's `from` and `value` with calls as turns of their own, and the Hugging Face
agents course's data with the roles human and model. Traps in the public data, all met here: calls as Python literals,
several calls and responses in a turn, an empty `<tools></tools>` in the prose of the system prompt, and the spelling
`<tool_reponse>`.
"""

import re

from pydantic import JsonValue

from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import (
    ROLES,
    answer_of,
    reasoning_of,
    role_of,
    text_of,
    turns_of,
    without_blank_lines,
)
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import read_value

_TAGGED = re.compile(r"<tool_call>|<tool_res?ponse>|<tools>|\"role\": \"(?:human|model|gpt)\"")
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_RESPONSE = re.compile(r"<tool_res?ponse>(.*?)(?:</tool_res?ponse>|\Z)", re.DOTALL)
_THOUGHT = re.compile(r"\A\s*<(think|scratch_pad)>(.*?)</\1>", re.DOTALL)
_DECLARED = re.compile(r"<tools>\s*[\[{]")
_TOOLS = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)

_PROMPT_ABOUT_TAGS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"You are provided with function signatures within <tools>\s*</tools> XML tags\.?",
        r"Here are the available tools:?(?=\s*<tools>)",
        r"<tools>.*?</tools>",
        r"Use the following pydantic model json schema[^:]*:\s*\{.*?\}(?=\s*(?:For each|\Z))",
        r"For each function call,? return a json object.*</tool_call>",
    )
)
"""What Hermes' system prompts say about the tags. The chat template says it instead; saying it twice costs tokens."""


def has_tags(text: str) -> bool:
    """Return whether a row's JSON shows Hermes' tags or roles."""
    return _TAGGED.search(text) is not None


def speakers(row: JsonObject) -> set[str]:
    """Return who speaks in turns with the fields `from` and `value`; nobody where they have other fields."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return set()
    return {str(turn["from"]) for turn in turns if isinstance(turn, dict) and "from" in turn}


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: saying what is wrong.
    """
    turns = turns_of(value, "conversations", "messages")
    with Within("tools"):
        tools = read_tools(value.get("tools"))
    messages: list[Message] = []
    field = "conversations" if value.get("conversations") is not None else "messages"
    places: list[tuple[str, int | None]] = [(field, index) for index in range(len(turns))]
    if isinstance(value.get("system"), str):
        turns = [{"role": "system", "content": value["system"]}, *turns]
        places = [("system", None), *places]
    for turn, place in zip(turns, places, strict=True):
        with Within(*place):
            tools = _take(turn, messages, tools)
    return messages, tools


def _take(turn: JsonObject, messages: list[Message], tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Add the messages of a turn, and return the tools that are known after it."""
    role = role_of(turn.get("role", turn.get("from")), ROLES)
    said = turn.get("content", turn.get("value"))
    text = answer_of(said) if role is Role.TOOL or _is_call(turn) else text_of(said)
    if role is Role.SYSTEM or (not tools and not messages and _DECLARED.search(text)):
        # For models without a system role, the agents course puts the prompt before the first request.
        tools = tools or _tools_in_prompt(text)
        text = _without_tags(text)
        messages += [Message(role, text)] if text else []
    elif role is Role.ASSISTANT:
        messages.append(_assistant(turn, text))
    elif role is Role.TOOL:
        responses = [part.strip() for part in _RESPONSE.findall(text)] or [text.strip()]
        messages += [Message(role, response, name=text_of(turn.get("name"))) for response in responses]
    else:
        messages.append(Message(role, text))
    return tools


def _assistant(turn: JsonObject, text: str) -> Message:
    reasoning = reasoning_of(turn)
    if thought := _THOUGHT.match(text):
        reasoning, text = thought.group(2).strip(), text[thought.end() :]
    if _is_call(turn) and "<tool_call>" not in text:
        # All of ShareGPT's turn `function_call` is one call, or a list of calls.
        calls, text = _calls_of(read_value(text, Rule.BROKEN_CALL)), ""
    else:
        with Within("tool_calls"):
            calls = _calls_of(turn.get("tool_calls"))
        with Within("function_call"):
            calls += _calls_of(turn.get("function_call"))
    if not calls:
        calls = [read_call(read_value(block, Rule.BROKEN_CALL)) for block in _CALL.findall(text)]
        text = _CALL.sub("", text)
    return Message(Role.ASSISTANT, text.strip(), reasoning=reasoning, calls=tuple(calls))


def _is_call(turn: JsonObject) -> bool:
    return turn.get("from", turn.get("role")) == "function_call"


def _calls_of(value: JsonValue) -> list[Call]:
    """Return one call, several, or none for null."""
    if not isinstance(value, list):
        return [read_call(value)] if value else []
    calls = []
    for index, call in enumerate(value):
        with Within("", index):
            calls += [read_call(call)] if call else []
    return calls


def _tools_in_prompt(text: str) -> tuple[Tool, ...]:
    """Return the tools of the `<tools>` blocks: a list or one definition a line, in JSON or as Python literals."""
    found: list[JsonValue] = []
    for block in (block.strip() for block in _TOOLS.findall(text)):
        if not block:
            continue
        try:
            value = read_value(block, Rule.BROKEN_TOOL)
            found += value if isinstance(value, list) else [value]
        except RowError:
            found += [read_value(line, Rule.BROKEN_TOOL) for line in block.split("\n") if line.strip()]
    return read_tools(found)


def _without_tags(text: str) -> str:
    for pattern in _PROMPT_ABOUT_TAGS:
        text = pattern.sub("\n", text)
    return without_blank_lines(text)

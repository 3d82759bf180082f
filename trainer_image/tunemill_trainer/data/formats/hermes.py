"""The Hermes family: turns whose text contains `<tool_call>`, `<tool_response>`, `<tools>` and `<think>`.

Covers NousResearch's Hermes data; ShareGPT's `from` and `value` with calls as separate turns, as in LLaMA-Factory and
APIGen-MT; and the data of the Hugging Face agents course with the roles human and model.
https://huggingface.co/datasets/NousResearch/hermes-function-calling-v1
https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
https://huggingface.co/datasets/Salesforce/APIGen-MT-5k
The public data contains calls as Python literals, several calls and responses in a turn, an empty `<tools></tools>` in
the prose of the system prompt, and the misspelling `<tool_reponse>`.
"""

import re
from dataclasses import replace

from pydantic import JsonValue

from tunemill_trainer.data import reasoning
from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import (
    CALLERS,
    answer_of,
    calls_of,
    content_in,
    message_of,
    role_name_of,
    role_of,
    text_of,
    turns_of,
    without_blank_lines,
)
from tunemill_trainer.data.rows import JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import identifier_of, read_tools
from tunemill_trainer.data.values import read_value

_TAGGED = re.compile(r"<tool_call>|<tool_res?ponse>|<tools>|\"role\": \"(?:human|model|gpt)\"")
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_RESPONSE = re.compile(r"<tool_res?ponse>(.*?)(?:</tool_res?ponse>|\Z)", re.DOTALL)
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
"""Instructions about the tags in Hermes system prompts. They are removed, because the chat template has such
instructions, and repeating them costs tokens."""


def has_tags(text: str) -> bool:
    """Return whether a row's JSON contains the tags or roles of Hermes data."""
    return _TAGGED.search(text) is not None


def speakers(row: JsonObject) -> set[str]:
    """Return the values of `from` in the turns of a row; an empty set if the turns have other fields."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        return set()
    return {str(turn["from"]) for turn in turns if isinstance(turn, dict) and "from" in turn}


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
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
    masked = _masked_role(value)
    for turn, place in zip(turns, places, strict=True):
        with Within(*place):
            tools = _take(turn, messages, tools)
    if masked is Role.ASSISTANT:
        messages = [replace(message, learnt=False) for message in messages]
    return messages, tools


def _masked_role(value: JsonObject) -> Role | None:
    """Return the role whose turns are excluded from training, as NeMo's rows name it in `mask`."""
    mask = value.get("mask")
    if not isinstance(mask, str) or not mask:
        return None
    with Within("mask"):
        return role_of(mask)


def _take(turn: JsonObject, messages: list[Message], tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Append the messages of a turn, and return the tools found so far."""
    role, content = role_of(role_name_of(turn)), content_in(turn)
    if role is Role.ASSISTANT:
        messages.append(_assistant(turn))
        return tools
    text = answer_of(content) if role is Role.TOOL else text_of(content)
    if role is Role.SYSTEM or (not tools and not messages and _DECLARED.search(text)):
        # For models without a system role, the agents course puts the system prompt before the first request.
        tools = tools or _tools_in_prompt(text)
        text = _without_tags(text)
        messages += [Message(role, text)] if text else []
    elif role is Role.TOOL or _only_responses(text):
        responses = [part.strip() for part in _RESPONSE.findall(text)] or [text.strip()]
        name, answered = text_of(turn.get("name")), identifier_of(turn) if len(responses) == 1 else ""
        messages += [Message(Role.TOOL, response, name=name, answers_to=answered) for response in responses]
    else:
        messages.append(Message(role, text))
    return tools


def _only_responses(text: str) -> bool:
    """Return whether a user turn consists only of tool responses, as Qwen's chat template renders them."""
    return text.lstrip().startswith("<tool_res") and not _RESPONSE.sub("", text).strip()


def _assistant(turn: JsonObject) -> Message:
    content = content_in(turn)
    if role_name_of(turn) in CALLERS and isinstance(content, str) and "<tool_call>" in content:
        turn = {**turn, "role": "assistant"}
    message = message_of(turn)
    if message.calls:
        return replace(message, content=message.content.strip())
    thought, text = reasoning.split(message.content)
    calls = [call for block in _CALL.findall(text) for call in calls_of(read_value(block, Rule.BROKEN_CALL))]
    text = _CALL.sub("", text)
    return replace(message, content=text.strip(), reasoning=message.reasoning or thought, calls=tuple(calls))


def _tools_in_prompt(text: str) -> tuple[Tool, ...]:
    """Return the tools in `<tools>` blocks: a list, or one definition per line, as JSON or Python literals."""
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

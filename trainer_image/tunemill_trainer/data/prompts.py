"""Extracts tool definitions from the system message. The chat template renders them, with instructions for calls."""

import json
import re
from contextlib import suppress

from pydantic import JsonValue

from tunemill_trainer.data import balanced
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import Message, Role, Tool
from tunemill_trainer.data.tools import read_tools
from tunemill_trainer.data.values import read_value

_BLOCKS = (
    ("<tools>", "</tools>"),
    ("<AVAILABLE_TOOLS>", "</AVAILABLE_TOOLS>"),
    ("<available_tools>", "</available_tools>"),
    ("<functions>", "</functions>"),
    ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    ("<|tool|>", "<|/tool|>"),
    ("<|tool_list_start|>", "<|tool_list_end|>"),
)
"""The marks around the tools in the prompts of Hermes, Nemotron, Mistral, Phi-4, LFM2 and others."""
_BEGIN = re.compile(r"(?:\[\s*)?\{\s*[\"'](?:name|type|function|description|parameters)[\"']\s*:")
_FOLLOWING = re.compile(r"[\s,]*+(?=\{)")
_SCHEMAS = frozenset({"parameters", "input_schema", "inputSchema", "function", "arguments"})


def extract_tools(messages: list[Message]) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns without the tools in the system message, and the tools; () if it has none."""
    if not messages or messages[0].role is not Role.SYSTEM:
        return messages, ()
    prompt = messages[0].content
    for text, begin, end in _candidates(prompt):
        with suppress(RowError):
            tools = read_tools(_definitions(text))
            if tools:
                rest = f"{prompt[:begin].rstrip()}\n{prompt[end:].lstrip()}".strip()
                return [*([Message(Role.SYSTEM, rest)] if rest else []), *messages[1:]], tools
    return messages, ()


def _candidates(prompt: str) -> list[tuple[str, int, int]]:
    """Return the parts of the prompt that may be tools, each with its start and end."""
    found = []
    for opening, closing in _BLOCKS:
        before, opened, rest = prompt.partition(opening)
        inside, closed, _ = rest.partition(closing)
        if opened and closed:
            end = len(before) + len(opening) + len(inside) + len(closing)
            found.append((inside.strip(), len(before), end))
    if (begin := _BEGIN.search(prompt)) is not None:
        end = _end_of_list(prompt, begin.start())
        found.append((prompt[begin.start() : end], begin.start(), end))
    return found


def _end_of_list(text: str, start: int) -> int:
    """Return the end of a list, or of the last of several consecutive objects."""
    end = start
    while (closed := balanced.matching_end(text, start)) is not None:
        end = closed
        following = _FOLLOWING.match(text, end)
        if following is None or text[start] != "{":
            break
        start = following.end()
    return end


def _definitions(text: str) -> list[JsonValue]:
    """Parse tool definitions: a list, or consecutive objects.

    Raises:
        RowError: BROKEN_TOOL, if the text is anything else.
    """
    try:
        value = read_value(text, Rule.BROKEN_TOOL)
        found: list[JsonValue] = value if isinstance(value, list) else [value]
    except RowError:
        found = [read_value(part, Rule.BROKEN_TOOL) for part in _objects(text)]
    if not all(isinstance(item, dict) and item.keys() & _SCHEMAS for item in found):
        raise RowError(Rule.BROKEN_TOOL, f"not tool definitions: {json.dumps(found)[:40]}")
    return found


def _objects(text: str) -> list[str]:
    parts = []
    at = text.find("{")
    while at >= 0:
        end = balanced.matching_end(text, at)
        if end is None:
            raise RowError(Rule.BROKEN_TOOL, "a tool definition is not closed")
        parts.append(text[at:end])
        at = text.find("{", end)
    return parts

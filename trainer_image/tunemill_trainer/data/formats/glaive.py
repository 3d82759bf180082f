"""Glaive's function-calling data, version 2: `system` with the tools, and the conversation as one string in `chat`.

https://huggingface.co/datasets/glaiveai/glaive-function-calling-v2
"""

import re

from pydantic import JsonValue

from tunemill_trainer.data import balanced
from tunemill_trainer.data.findings import RowError, Rule, Within
from tunemill_trainer.data.formats.turns import text_of, without_blank_lines
from tunemill_trainer.data.rows import Call, JsonObject, Message, Role, Tool
from tunemill_trainer.data.tools import read_call, read_tools
from tunemill_trainer.data.values import read_object, read_value, shortened

_TURN = re.compile(r"(?:\A|\n)[^\S\n]*(USER|ASSISTANT|FUNCTION RESPONSE):[ \t]*")
_END = "<|endoftext|>"
_CALL = "<functioncall>"
_QUOTED = re.compile(r"""\{\s*"name":\s*"([^"]+)"\s*,\s*"arguments":\s*'(.*)'\s*\}\Z""", re.DOTALL)
_ABOUT_TOOLS = re.compile(
    r",? with (?:access to the following functions|no access to external functions)\.?( Use them if required\b[ -]*)?"
)
"""Sentences about tools in the prompts, which are removed because the chat template has such instructions."""


def matches(value: JsonObject) -> bool:
    """Return whether a row has the fields of this format."""
    return isinstance(value.get("chat"), str)


def read(value: JsonObject) -> tuple[list[Message], tuple[Tool, ...]]:
    """Return the turns and tools of a row.

    Raises:
        RowError: the row cannot be read.
    """
    chat = value.get("chat")
    if not isinstance(chat, str):
        raise RowError(Rule.FORMAT, "expected a field `chat` with the conversation as a string")
    with Within("system"):
        prompt, tools = _system(text_of(value.get("system")))
    begin, *turns = _TURN.split(chat)
    if begin.strip() or not turns:
        raise RowError(Rule.FORMAT, f"expected `chat` to begin with USER:, found {shortened(chat.strip())!r}", "chat")
    messages = [Message(Role.SYSTEM, prompt)] if prompt else []
    for index, (speaker, content) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
        text = content.replace(_END, "").strip()
        if speaker == "USER":
            messages.append(Message(Role.USER, text))
        elif speaker == "ASSISTANT":
            with Within("chat", index):
                messages.append(_assistant(text))
        else:
            messages.append(Message(Role.TOOL, text))
    return messages, tools


def _system(text: str) -> tuple[str, tuple[Tool, ...]]:
    """Return the system prompt without the tools, and the tools, which are consecutive JSON objects in it."""
    found: list[JsonValue] = []
    at, kept = text.find("{"), text.partition("{")[0]
    while at >= 0:
        end = balanced.matching_end(text, at)
        if end is None:
            raise RowError(Rule.BROKEN_TOOL, f"a tool definition in `system` is not closed: {shortened(text[at:])}")
        found.append(read_value(text[at:end], Rule.BROKEN_TOOL))
        at = text.find("{", end)
        kept += text[end : at if at >= 0 else len(text)]
    prompt = _ABOUT_TOOLS.sub(".", kept.strip().removeprefix("SYSTEM:"))
    return without_blank_lines(prompt), read_tools(found)


def _assistant(text: str) -> Message:
    before, *blocks = text.split(_CALL)
    return Message(Role.ASSISTANT, before.strip(), calls=tuple(_call(block.strip()) for block in blocks))


def _call(block: str) -> Call:
    """Parse a call whose arguments are JSON in single quotes. As a whole, it is neither JSON nor a Python literal."""
    if quoted := _QUOTED.match(block):
        name, arguments = quoted.groups()
        # Apostrophes are escaped as in Python, which is invalid in JSON.
        return Call(name, read_object(arguments.replace("\\'", "'"), Rule.BROKEN_CALL, f"the arguments of {name}"))
    return read_call(read_value(block, Rule.BROKEN_CALL))

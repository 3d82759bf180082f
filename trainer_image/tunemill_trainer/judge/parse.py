"""Reads tool calls out of a reply, as strictly as the server that will serve the model.

The rule is that of vLLM's `hermes` parser: every `<tool_call>` block, the last one also when it is not closed, must be
JSON with a name and arguments, and one bad block makes the server hand the whole reply back as plain text. A lenient
reading here would promise calls that no client ever gets.
"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from tunemill_trainer.data.rows import Call

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


@dataclass(frozen=True)
class ParsedReply:
    """A reply as a server would hand it on.

    Attributes:
        calls: the calls; empty when any block is broken.
        blocks: how many `<tool_call>` blocks were begun.
        error: what is wrong with the first broken block; empty when none is.
    """

    calls: tuple[Call, ...]
    blocks: int
    error: str = ""


def parse_reply(text: str) -> ParsedReply:
    """Return the calls of a reply that was decoded with its special tokens, up to its stop token."""
    blocks = [closed or left_open for closed, left_open in _BLOCK.findall(text)]
    try:
        return ParsedReply(tuple(_call(block) for block in blocks), len(blocks))
    except ValueError as error:
        return ParsedReply((), len(blocks), str(error))


def _call(block: str) -> Call:
    try:
        value = json.loads(block, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("the call is nested too deeply to be read") from error
    if not isinstance(value, dict):
        raise ValueError(f"a call must be a JSON object, found {type(value).__name__}")
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str):
        raise ValueError("a call needs a name, which must be a string")
    # vLLM would pass on a string or a list here, but no client can call a function with it.
    if not isinstance(arguments, dict):
        raise ValueError("a call needs arguments, which must be an object")
    return Call(name, arguments)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

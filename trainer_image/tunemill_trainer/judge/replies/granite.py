"""`<|tool_call|>[{"name": …, "arguments": {…}}]`: Granite 3, whose mark may also be `<tool_call>`; and Granite 4.

Granite 3: text around the list is ignored. The list ends at its bracket, or at the first element that is not an object.
Arguments are converted to the types in the tool's schema. Granite 4 uses the Hermes format, and every tag must be
paired.
"""

import re
from collections.abc import Iterator, Sequence

from tunemill_trainer.data.rows import Tool
from tunemill_trainer.judge.replies.parsed import (
    NO_CALL,
    ParsedReply,
    broken,
    call_of,
    calls_of_texts,
    read_each,
    read_json,
)
from tunemill_trainer.judge.replies.scanning import CallText, as_calls

BEGIN = re.compile(r"<\|tool_call\|>|<tool_call>\s*\[")

_MARK = re.compile(r"<\|tool_call\|>|<tool_call>")
_ELEMENT_PART = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_ARGUMENTS_PART = re.compile(r'"((?:[^"\\]|\\.)*)"?|[\[\]{}:]', re.DOTALL)
_TAG = re.compile(r"(</?tool_call>)")


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of Granite 3."""
    found = [CallText(parts=[element]) for element in _elements(text)]
    if not found:
        return broken(1, "expected a list of calls after the mark") if BEGIN.search(text) else NO_CALL
    return as_calls(found, _arguments, tools)


def read_4(text: str, _tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply of Granite 4."""
    parts = _TAG.split(text)
    if len(parts) == 1:
        return NO_CALL
    blocks = max(1, parts.count("<tool_call>"))
    if parts[1::2] != ["<tool_call>", "</tool_call>"] * (len(parts) // 4):
        return broken(blocks, "a <tool_call> or </tool_call> is unpaired")
    inside = parts[2::4]
    try:
        values = [read_json(part) for part in inside]
    except ValueError as error:
        return broken(blocks, error)
    named = [value for value in values if isinstance(value, dict) and isinstance(value.get("arguments"), str)]
    if not named:
        return read_each(values, call_of)
    if not all(isinstance(value, dict) and isinstance(value.get("name"), str) for value in values):
        return broken(blocks, "a call must be an object with a name")
    texts = [(str(value["name"]), value.get("arguments")) for value in values if isinstance(value, dict)]
    return calls_of_texts(texts, blocks, "")


def _elements(text: str) -> Iterator[str]:
    """Yield the objects of all lists; the last one may be incomplete."""
    at = 0
    while mark := _MARK.search(text, at):
        at = _gap(text, mark.end(), " \t\r\n")
        if text.startswith("[", at):
            at = _gap(text, at + 1, " \t\r\n,")
            while text.startswith("{", at):
                end = _end_of_element(text, at)
                yield text[at:end]
                at = _gap(text, end, " \t\r\n,")
        # A mark within a list ends the list, but does not start another one.
        if unexpected := _MARK.match(text, at):
            at = unexpected.end()


def _gap(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _end_of_element(text: str, start: int) -> int:
    depth = 0
    for part in _ELEMENT_PART.finditer(text, start):
        if part[0] in "{[":
            depth += 1
        elif part[0] in "}]":
            depth = max(0, depth - 1)
            if not depth and part[0] == "}":
                return part.end()
    return len(text)


def _arguments(element: str) -> str:
    """Return the text of the member `arguments`, which may be incomplete.

    Raises:
        ValueError: it is not an object.
    """
    depth, last = 0, ""
    for part in _ARGUMENTS_PART.finditer(element):
        if part[0].startswith('"'):
            last = part[1] if depth == 1 else last
        elif part[0] == ":":
            if depth == 1 and last == "arguments":
                start = _gap(element, part.end(), " \t\r\n")
                if start == len(element):
                    return "{}"
                if element[start] != "{":
                    raise ValueError("the arguments are not an object")
                return element[start : _end_of_object(element, start)]
        else:
            depth += 1 if part[0] in "{[" else -1
    return "{}"


def _end_of_object(text: str, start: int) -> int:
    depth = 0
    for part in _ELEMENT_PART.finditer(text, start):
        if part[0] in "{}":
            depth += 1 if part[0] == "{" else -1
            if not depth:
                return part.end()
    return len(text)

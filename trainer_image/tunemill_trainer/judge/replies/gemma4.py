"""`<|tool_call>call:name{key:<|"|>text<|"|>,other:3}<tool_call|>`: Gemma 4.

Strings are between two `<|"|>`; numbers, booleans, lists and objects are not. Values other than lists and objects are
first read as text, and then converted to the type in the tool's schema.
"""

import json
from collections.abc import Callable, Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import JsonObject, Tool
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.replies.scanning import Scanner, State, Transition, as_calls

BEGIN = "<|tool_call>"

_END, _QUOTE = "<tool_call|>", '<|"|>'
_SCANNER = Scanner(
    {
        (State.TEXT, BEGIN): Transition(State.BEFORE_NAME, begins=True),
        (State.BEFORE_NAME, _END): Transition(State.TEXT),
        (State.BEFORE_NAME, "call:"): Transition(State.NAME),
        (State.BEFORE_NAME, ":"): Transition(State.NAME),
        (State.NAME, "{"): Transition(State.ARGUMENTS),
        (State.NAME, "("): Transition(State.ARGUMENTS),
        (State.NAME, _END): Transition(State.TEXT),
        (State.ARGUMENTS, _END): Transition(State.TEXT),
    },
    inert=("<|channel>", "<channel|>"),
)
_GAPS = " \n\t"
_DEEPEST = 100
"""The maximum nesting. Deeper arguments are rejected anyway, and each level scans its text again."""


def read(text: str, tools: Sequence[Tool]) -> ParsedReply:
    """Return the calls of a reply."""
    return as_calls(_SCANNER.calls(text), _to_json, tools)


def _to_json(arguments: str) -> str:
    text = arguments.strip()
    if text.endswith("}") or (text.endswith(")") and text.count("(") < text.count(")")):
        text = text[:-1]
    return json.dumps(_Members(text, cut=False).read(), ensure_ascii=False)


class _Values:
    """A parser for the contents of brackets.

    Args:
        text: the text between the brackets.
        depth: the nesting depth of the brackets.
        cut: whether the closing bracket is missing. Then a bare value at the end may be incomplete, and is dropped.
    """

    ends: str

    def __init__(self, text: str, *, cut: bool, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        self._text, self._cut, self._at, self._depth = text, cut, 0, depth

    def _skip(self, characters: str) -> bool:
        """Skip the given characters, and return whether any text is left."""
        while self._at < len(self._text) and self._text[self._at] in characters:
            self._at += 1
        return self._at < len(self._text)

    def _value(self) -> tuple[bool, JsonValue]:
        """Parse a value. Returns whether there is one, and the value."""
        if self._text.startswith(_QUOTE, self._at):
            return True, self._quoted()
        mark = self._text[self._at]
        if mark == "{":
            return True, self._nested("}", lambda text, cut: _Members(text, cut=cut, depth=self._depth + 1).read())
        if mark == "[":
            return True, self._nested("]", lambda text, cut: _Items(text, cut=cut, depth=self._depth + 1).read())
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in self.ends:
            self._at += 1
        written = self._text[start : self._at].strip()
        missing = self._at == start or (self._cut and (self._at == len(self._text) or written.endswith(".")))
        return not missing, written

    def _quoted(self) -> str:
        start = self._at + len(_QUOTE)
        end = self._text.find(_QUOTE, start)
        if end < 0:
            self._at = len(self._text)
            return self._without_cut_quote(self._text[start:])
        self._at = end + len(_QUOTE)
        return self._text[start:end]

    def _without_cut_quote(self, text: str) -> str:
        return text

    def _nested(self, closing: str, read: Callable[[str, bool], JsonValue]) -> JsonValue:
        opening, start, depth = self._text[self._at], self._at + 1, 1
        self._at += 1
        while self._at < len(self._text) and depth:
            if self._text.startswith(_QUOTE, self._at):
                end = self._text.find(_QUOTE, self._at + len(_QUOTE))
                self._at = len(self._text) if end < 0 else end + len(_QUOTE)
                continue
            depth += (self._text[self._at] == opening) - (self._text[self._at] == closing)
            self._at += 1
        return read(self._text[start : self._at - (not depth)], bool(depth))


class _Members(_Values):
    ends = ",}]"

    def read(self) -> JsonObject:
        """Parse the members of an object."""
        found: JsonObject = {}
        while self._skip(_GAPS + ","):
            colon = self._text.find(":", self._at)
            if colon < 0:
                break
            key = self._text[self._at : colon].strip()
            if key.startswith(_QUOTE) and key.endswith(_QUOTE):
                key = key[len(_QUOTE) : -len(_QUOTE)]
            self._at = colon + 1
            if not self._skip(_GAPS):
                if not self._cut:
                    found[key] = ""
                break
            there, value = self._value()
            if not there:
                break
            found[key] = value
        return found

    def _without_cut_quote(self, text: str) -> str:
        """Return an unclosed string without an incomplete closing mark at its end."""
        if self._cut:
            for length in range(len(_QUOTE), 0, -1):
                if text.endswith(_QUOTE[:length]):
                    return text[:-length]
        return text


class _Items(_Values):
    ends = ",]"

    def read(self) -> list[JsonValue]:
        """Parse the items of a list."""
        found: list[JsonValue] = []
        while self._skip(_GAPS + ","):
            there, value = self._value()
            if not there:
                break
            found.append(value)
        return found

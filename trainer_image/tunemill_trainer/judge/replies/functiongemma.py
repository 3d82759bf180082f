"""`<start_function_call>call:name{argument:<escape>text<escape>}<end_function_call>`: FunctionGemma.

The model writes numbers, booleans, lists and objects without `<escape>`. vLLM's parser only reads arguments between two
`<escape>` and silently drops others, and it parses escaped text such as 5 or true as JSON. The last call may be
unclosed, because its end mark can be a stop token of the server.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import refuse_constant
from tunemill_trainer.judge.replies.parsed import NO_CALL, ParsedReply, broken, refuse_unusable

BEGIN = "<start_function_call>"

_CALL = re.compile(
    r"<start_function_call>call:(\w+)\{(.*?)\}<end_function_call>|<start_function_call>call:(\w+)\{(.*)", re.DOTALL
)
# The lookbehind and the possessive quantifier avoid quadratic time for long words.
_ESCAPED = re.compile(r"(?<!\w)(\w++):<escape>(.*?)<escape>", re.DOTALL)
_TEXT = re.compile(r"<escape>.*?<escape>", re.DOTALL)
_WHOLE_CALL = re.compile(r"<start_function_call>\s*call:([\w.-]+)(\{.*?)(?=<end_function_call>|<start_|\Z)", re.DOTALL)
_TOKEN = re.compile(r"<escape>(.*?)<escape>|([{}\[\],:])|([^{}\[\],:]+)", re.DOTALL)
_NAMES: dict[str, JsonValue] = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def read(text: str, _tools: Sequence[Tool] = ()) -> ParsedReply:
    """Return the calls of a reply."""
    found = list(_CALL.finditer(text))
    # A mark within an argument does not start a call.
    begun = max(len(found), _TEXT.sub("", text).count(BEGIN))
    if not begun:
        return NO_CALL
    if not found:
        return broken(begun, "no call has the form call:name{…}")
    try:
        calls = tuple(Call(call[1] or call[3], _arguments(call[2] or call[4] or "")) for call in found)
        refuse_unusable(calls)
    except ValueError as error:
        return broken(begun, error)
    whole = read_all(text)
    lost = tuple(
        f"{meant.name}.{name}"
        for meant, call in zip(whole, calls, strict=False)
        for name in meant.arguments
        if name not in call.arguments
    )
    return ParsedReply(calls, begun, lost=lost)


def read_all(text: str) -> tuple[Call, ...]:
    """Return the calls with all arguments, as the model's chat template writes them.

    Text between two `<escape>` is a string; everything else is a number, boolean, null, list or object. Calls that
    cannot be parsed are omitted.
    """
    calls = []
    for name, written in _WHOLE_CALL.findall(text):
        with suppress(ValueError, IndexError, RecursionError):
            value = _Written(written).value()
            if isinstance(value, dict):
                calls.append(Call(name, value))
    return tuple(calls)


def _arguments(written: str) -> JsonObject:
    return {name: _value(text) for name, text in _ESCAPED.findall(written)}


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError:
        return text
    except RecursionError as error:
        raise ValueError("an argument is nested too deeply") from error
    return value


class _Written:
    """A recursive descent parser for the values of arguments."""

    def __init__(self, text: str) -> None:
        self._tokens = [match for match in _TOKEN.finditer(text) if match.group().strip()]
        self._at = 0

    def value(self) -> JsonValue:
        """Parse the next value.

        Raises:
            ValueError, IndexError: the text is invalid, or ends.
        """
        token = self._next()
        if token.group(1) is not None:
            return token.group(1)
        if token.group() == "{":
            return dict(self._members())
        if token.group() == "[":
            return list(self._items())
        word = token.group().strip()
        return _NAMES[word] if word in _NAMES else _number(word)

    def _members(self) -> Iterator[tuple[str, JsonValue]]:
        while not self._takes("}"):
            name = self._next()
            if not self._takes(":"):
                raise ValueError("an argument has no value")
            yield (name.group(1) or name.group()).strip(), self.value()
            self._takes(",")

    def _items(self) -> Iterator[JsonValue]:
        while not self._takes("]"):
            yield self.value()
            self._takes(",")

    def _takes(self, mark: str) -> bool:
        taken = self._tokens[self._at].group() == mark
        self._at += taken
        return taken

    def _next(self) -> re.Match[str]:
        self._at += 1
        return self._tokens[self._at - 1]


def _number(word: str) -> JsonValue:
    value = json.loads(word, parse_constant=refuse_constant)
    if not isinstance(value, int | float):
        raise ValueError(f"{word} is not a number")
    return value

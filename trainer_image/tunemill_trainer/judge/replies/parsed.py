"""What a server reads in a reply, and the steps that all readers share."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.values import is_deep, refuse_constant

_Part = TypeVar("_Part")

TOO_DEEP = "the call is nested too deeply to be read"


@dataclass(frozen=True)
class ParsedReply:
    """A reply as a server would hand it on.

    Attributes:
        calls: the calls; empty when any is broken.
        blocks: how many calls were begun, broken ones included.
        error: what is wrong with the first broken call; empty when none is.
        lost: arguments that the model wrote and the server leaves out, as tool.argument.
    """

    calls: tuple[Call, ...]
    blocks: int
    error: str = ""
    lost: tuple[str, ...] = ()


NO_CALL = ParsedReply((), 0)
"""A reply that is plain text."""


def broken(blocks: int, error: object) -> ParsedReply:
    """Return a reply that begins calls and that a server hands on as text."""
    return ParsedReply((), max(1, blocks), str(error))


def read_each(parts: Iterable[_Part], read: Callable[[_Part], Call]) -> ParsedReply:
    """Return the calls of all parts; one that raises ValueError breaks the reply, and so does one without an end."""
    parts = list(parts)
    try:
        calls = tuple(map(read, parts))
        refuse_unusable(calls)
        return ParsedReply(calls, len(parts))
    except ValueError as error:
        return broken(len(parts), error)
    except RecursionError:
        return broken(len(parts), TOO_DEEP)


def read_list(text: str, mark: str, arguments_fields: tuple[str, ...] = ("arguments",)) -> ParsedReply:
    """Return the calls of a JSON list, which may not be empty; `mark` is what stands before it."""
    try:
        calls = read_json(text)
    except ValueError as error:
        return broken(1, error)
    if not isinstance(calls, list) or not calls:
        return broken(1, f"expected a list of calls after {mark}")
    return read_each(calls, lambda call: call_of(call, arguments_fields))


def read_list_between(text: str, begin: str, end: str) -> ParsedReply:
    """Return the calls of the JSON list between the first `begin` and the next `end`; other text does not matter."""
    _, found, rest = text.partition(begin)
    if not found:
        return NO_CALL
    listed, closed, _ = rest.partition(end)
    return read_list(listed, begin) if closed else broken(1, "the list of calls is not closed")


def read_json(text: str) -> JsonValue:
    """Return a JSON value.

    Raises:
        ValueError: also for NaN, which Python would take and a client would not, and for endless nesting.
    """
    try:
        return cast("JsonValue", json.loads(text, parse_constant=refuse_constant))
    except json.JSONDecodeError as error:
        raise ValueError(not_json(error)) from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def call_of(value: JsonValue, arguments_fields: tuple[str, ...] = ("arguments",)) -> Call:
    """Return the call that an object with a name and arguments is.

    Args:
        value: any JSON value.
        arguments_fields: the names that the arguments may have, the one that is looked for first in front.

    Raises:
        ValueError: saying what is missing.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a call must be a JSON object, found {type(value).__name__}")
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError("a call needs a name, which must be a string")
    arguments = next((value[field] for field in arguments_fields if field in value), None)
    # vLLM would pass on a string or a list here, but no client can call a function with it.
    if not isinstance(arguments, dict):
        raise ValueError(f"a call needs {' or '.join(arguments_fields)}, which must be an object")
    return Call(name, arguments)


def calls_of_texts(parts: Iterable[tuple[str, JsonValue]], blocks: int, none: str) -> ParsedReply:
    """Return the calls of which a server hands on the names, and the arguments as text without looking into them.

    Args:
        parts: name and arguments of each call; the arguments as the text of a JSON object, or as such an object.
        blocks: how many calls are begun.
        none: what is wrong when there are no parts.
    """
    parts = list(parts)
    if not parts:
        return broken(blocks, none)
    reply = read_each(parts, lambda part: _call_of_text(*part))
    return reply if reply.error else ParsedReply(reply.calls, max(blocks, len(reply.calls)))


def _call_of_text(name: str, arguments: JsonValue) -> Call:
    if not name:
        raise ValueError("a call has no name")
    # Clients take no text at all for no arguments.
    value = read_json(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of a call must be a JSON object, found {type(value).__name__}")
    return Call(name, value)


def refuse_unusable(calls: Iterable[Call]) -> None:
    r"""Refuse what JSON cannot carry to a client: endless nesting, 1e999, half of a character as "\ud83d" alone is.

    Raises:
        ValueError: there is such a call.
    """
    for call in calls:
        if is_deep(call.arguments):
            raise ValueError(TOO_DEEP)
        try:
            json.dumps(call.to_json(), ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the call holds half of a character (a lone surrogate), which is no text") from error
        except ValueError as error:
            raise ValueError("the call holds a number that is too large for JSON") from error


def not_json(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a call that is not JSON."""
    return f"the call is not JSON, at its character {error.pos + 1}: {error.msg}"

"""The result of parsing a reply, and functions that all formats share."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call
from tunemill_trainer.data.values import is_deep, refuse_constant

_Part = TypeVar("_Part")

TOO_DEEP = "the call is nested too deeply"


@dataclass(frozen=True)
class ParsedReply:
    """A reply as a server parses it.

    Attributes:
        calls: the calls; empty if any is broken.
        blocks: the number of calls that the reply starts, including broken ones.
        error: the error of the first broken call; empty if none is broken.
        lost: arguments that the model generated but the server drops, as tool.argument.
    """

    calls: tuple[Call, ...]
    blocks: int
    error: str = ""
    lost: tuple[str, ...] = ()


NO_CALL = ParsedReply((), 0)
"""A reply that is plain text."""


def broken(blocks: int, error: object) -> ParsedReply:
    """Return a reply with broken calls, which a server returns as text."""
    return ParsedReply((), max(1, blocks), str(error))


def read_each(parts: Iterable[_Part], read: Callable[[_Part], Call]) -> ParsedReply:
    """Return the calls of all parts. If `read` raises ValueError or RecursionError for any, the reply is broken."""
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
    """Return the calls of a JSON list, which must not be empty. `mark` is the text before it, for messages."""
    try:
        calls = read_json(text)
    except ValueError as error:
        return broken(1, error)
    if not isinstance(calls, list) or not calls:
        return broken(1, f"expected a list of calls after {mark}")
    return read_each(calls, lambda call: call_of(call, arguments_fields))


def read_list_between(text: str, begin: str, end: str) -> ParsedReply:
    """Return the calls of the JSON list between the first `begin` and the next `end`; other text is ignored."""
    _, found, rest = text.partition(begin)
    if not found:
        return NO_CALL
    listed, closed, _ = rest.partition(end)
    return read_list(listed, begin) if closed else broken(1, "the list of calls is not closed")


def read_json(text: str) -> JsonValue:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, nested too deeply, or contains NaN, which Python accepts but clients do not.
    """
    try:
        return cast("JsonValue", json.loads(text, parse_constant=refuse_constant))
    except json.JSONDecodeError as error:
        raise ValueError(not_json(error)) from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def call_of(value: JsonValue, arguments_fields: tuple[str, ...] = ("arguments",)) -> Call:
    """Convert an object with a name and arguments to a call.

    Args:
        value: any JSON value.
        arguments_fields: the possible names of the field for arguments, in order of precedence.

    Raises:
        ValueError: the value is not a call.
    """
    if not isinstance(value, dict):
        raise ValueError(f"a call must be a JSON object, found {type(value).__name__}")
    name = value.get("name")
    if not isinstance(name, str):
        raise ValueError("a call needs a name, which must be a string")
    arguments = next((value[field] for field in arguments_fields if field in value), None)
    # vLLM would return a string or a list as arguments, but no client can call a function with them.
    if not isinstance(arguments, dict):
        raise ValueError(f"a call needs {' or '.join(arguments_fields)}, which must be an object")
    return Call(name, arguments)


def calls_of_texts(parts: Iterable[tuple[str, JsonValue]], blocks: int, none: str) -> ParsedReply:
    """Return calls whose arguments a server returns as text without parsing them.

    Args:
        parts: name and arguments of each call; the arguments as a JSON object or a string with one.
        blocks: the number of calls that the reply starts.
        none: the error if there are no parts.
    """
    parts = list(parts)
    if not parts:
        return broken(blocks, none)
    reply = read_each(parts, lambda part: _call_of_text(*part))
    return reply if reply.error else ParsedReply(reply.calls, max(blocks, len(reply.calls)))


def _call_of_text(name: str, arguments: JsonValue) -> Call:
    if not name:
        raise ValueError("a call has no name")
    # Clients treat empty text as no arguments.
    value = read_json(arguments or "{}") if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        raise ValueError(f"the arguments of a call must be a JSON object, found {type(value).__name__}")
    return Call(name, value)


def refuse_unusable(calls: Iterable[Call]) -> None:
    r"""Reject calls that JSON cannot represent: nested too deeply, 1e999, or with a lone surrogate such as "\ud83d".

    Raises:
        ValueError: there is such a call.
    """
    for call in calls:
        if is_deep(call.arguments):
            raise ValueError(TOO_DEEP)
        try:
            json.dumps(call.to_json(), ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("the call contains a lone surrogate, which is not valid text") from error
        except ValueError as error:
            raise ValueError("the call contains a number that is too large for JSON") from error


def not_json(error: json.JSONDecodeError) -> str:
    """Return the message for a call that is not JSON."""
    return f"the call is not JSON, at character {error.pos + 1}: {error.msg}"

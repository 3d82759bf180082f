"""Checks a canonical row for mistakes that a model would learn from."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from pydantic import JsonValue

from tunemill_trainer.data import text_calls
from tunemill_trainer.data.findings import Problem, RowError, Rule
from tunemill_trainer.data.rows import Call, Message, Role, Row, Tool
from tunemill_trainer.data.secrets import secrets_in
from tunemill_trainer.data.tools import call_problems, contract_problems
from tunemill_trainer.data.values import read_value

MARKERS = ("<tool_call>", "</tool_call>")
"""The marks between which a server looks for a call, anywhere in an assistant turn."""
_FOREIGN = tuple(mark for mark in text_calls.MARKS if mark not in MARKERS)
"""The marks of other call formats than the one of Tunemill's template."""
_PYTHON = re.compile(r"\s*[\[{(].*(?:\b(?:True|False|None)\b|')", re.DOTALL)
"""Matches the beginning of text that may be a Python literal: JSON has neither these names nor these quotes."""


def problems(row: Row, contract: Sequence[Tool] = ()) -> list[Problem]:
    """Return all problems of a row.

    Args:
        row: the row to check.
        contract: the tools of spec.tools; empty if there are none.
    """
    found = list(_order_problems(row.messages))
    if contract:
        found += contract_problems(row.tools, contract)
    for number, message in enumerate(row.messages, start=1):
        if message.role is Role.USER and not message.content.strip():
            found.append(Problem(Rule.EMPTY_TURN, "the user turn has no text", f"turn {number}"))
        if message.role is Role.ASSISTANT:
            found += _at(f"turn {number}", _assistant_problems(message))
            for place, call in enumerate(message.calls, start=1):
                of_call = [*_marker_problems(call), *_literal_problems(call)]
                # A turn that is not trained on may contain a mistake that later turns correct.
                of_call += call_problems(call, row.tools) if message.learnt else ()
                found += _at(f"turn {number}, call {place}", of_call)
    return [*found, *_secret_problems(row)]


def _at(field: str, found: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems with the place of their turn or call. Turns count from 1 and include the system message."""
    return (replace(problem, field=field) for problem in found)


def _order_problems(messages: tuple[Message, ...]) -> Iterator[Problem]:
    if not any(message.role is not Role.SYSTEM for message in messages):
        yield Problem(Rule.ROLE_ORDER, "the row has only a system message")
    if messages[:1] and messages[0].role is Role.ASSISTANT and messages[0].learnt:
        yield Problem(
            Rule.ROLE_ORDER, "the first turn is the assistant's, so there is no request to respond to", "turn 1"
        )
    for number, (before, message) in enumerate(zip((None, *messages), messages, strict=False), start=1):
        if message.role is Role.SYSTEM and before is not None:
            yield Problem(
                Rule.ROLE_ORDER,
                f"the system message follows a message of role {before.role.value}",
                f"turn {number}",
            )
        may_answer = before is not None and (before.role is Role.TOOL or bool(before.calls))
        if message.role is Role.TOOL and not may_answer:
            yield Problem(Rule.ROLE_ORDER, "the tool message does not follow a call", f"turn {number}")
        if before is not None and before.calls and message.role is not Role.TOOL:
            names = ", ".join(call.name for call in before.calls)
            found = f"expected the response of {names}, found a message of role {message.role.value}"
            yield Problem(Rule.UNANSWERED_CALL, found, f"turn {number}")


def _assistant_problems(message: Message) -> Iterator[Problem]:
    if not message.content.strip() and not message.calls:
        yield Problem(Rule.EMPTY_TURN, "the assistant turn has neither text nor calls")
    for marker in MARKERS:
        if marker in message.content or marker in message.reasoning:
            yield Problem(Rule.MARKER_IN_TEXT, f"the text of the assistant turn contains {marker}")


def _secret_problems(row: Row) -> Iterator[Problem]:
    """Yield a problem for each kind of secret. The message never contains the secret: reports and logs show it."""
    for kind in secrets_in(row):
        yield Problem(Rule.SECRET, f"the row contains what looks like {kind}")


def _marker_problems(call: Call) -> Iterator[Problem]:
    written = json.dumps([call.name, call.arguments], ensure_ascii=False)
    for marker in MARKERS:
        if marker in written:
            yield Problem(Rule.MARKER_IN_TEXT, f"the call to {call.name} contains {marker}")
    for marker in _FOREIGN if "<" in written or "[T" in written else ():
        if marker in written:
            yield Problem(Rule.FOREIGN_MARKER, f"the call to {call.name} contains {marker}")


def _literal_problems(call: Call) -> Iterator[Problem]:
    """Yield a problem for each argument that is a Python literal in a string, which other languages cannot parse."""
    for name, value in call.arguments.items():
        if isinstance(value, str) and _PYTHON.match(value) and _is_python_only(value):
            yield Problem(Rule.PYTHON_LITERAL, f"{call.name}.{name} is a Python literal in a string")


def _is_python_only(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        try:
            value: JsonValue = read_value(text, Rule.BROKEN_CALL)
        except RowError:
            return False
        return isinstance(value, dict | list) and bool(value)
    return False

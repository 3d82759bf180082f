"""Looks at a canonical row for what would teach a model something wrong."""

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
"""Between these a server looks for a call, wherever in the assistant's turn they stand."""
_FOREIGN = tuple(mark for mark in text_calls.MARKS if mark not in MARKERS)
"""The same for other models than those with our own template."""
_PYTHON = re.compile(r"\s*[\[{(].*(?:\b(?:True|False|None)\b|')", re.DOTALL)
"""How a text begins that may be a literal of Python: JSON has neither these names nor these quotes."""


def problems(row: Row, contract: Sequence[Tool] = ()) -> list[Problem]:
    """Return all that is wrong with a row; an empty list for a good one.

    Args:
        row: to look at.
        contract: spec.tools, where they are given.
    """
    found = list(_order_problems(row.messages))
    if contract:
        found += contract_problems(row.tools, contract)
    for number, message in enumerate(row.messages, start=1):
        if message.role is Role.USER and not message.content.strip():
            found.append(Problem(Rule.EMPTY_TURN, "a user's turn has no text", f"turn {number}"))
        if message.role is Role.ASSISTANT:
            found += _at(f"turn {number}", _assistant_problems(message))
            for place, call in enumerate(message.calls, start=1):
                of_call = [*_marker_problems(call), *_literal_problems(call)]
                # What is not learnt may be the mistake that the next turns mend.
                of_call += call_problems(call, row.tools) if message.learnt else ()
                found += _at(f"turn {number}, call {place}", of_call)
    return [*found, *_secret_problems(row)]


def _at(field: str, found: Iterable[Problem]) -> Iterator[Problem]:
    """Yield problems with the place of the turn or call that has them; turns count from 1, the system message too."""
    return (replace(problem, field=field) for problem in found)


def _order_problems(messages: tuple[Message, ...]) -> Iterator[Problem]:
    if not any(message.role is not Role.SYSTEM for message in messages):
        yield Problem(Rule.ROLE_ORDER, "the row has no turn but the system message")
    if messages[:1] and messages[0].role is Role.ASSISTANT and messages[0].learnt:
        yield Problem(Rule.ROLE_ORDER, "the assistant speaks first: there is nothing to answer", "turn 1")
    for number, (before, message) in enumerate(zip((None, *messages), messages, strict=False), start=1):
        if message.role is Role.SYSTEM and before is not None:
            yield Problem(
                Rule.ROLE_ORDER, f"a system message comes after one of the {before.role.value}", f"turn {number}"
            )
        may_answer = before is not None and (before.role is Role.TOOL or bool(before.calls))
        if message.role is Role.TOOL and not may_answer:
            yield Problem(Rule.ROLE_ORDER, "a tool message comes without a call before it", f"turn {number}")
        if before is not None and before.calls and message.role is not Role.TOOL:
            names = ", ".join(call.name for call in before.calls)
            follows = f"a message of the {message.role.value} follows"
            yield Problem(Rule.UNANSWERED_CALL, f"{names} is called, and {follows}", f"turn {number}")


def _assistant_problems(message: Message) -> Iterator[Problem]:
    if not message.content.strip() and not message.calls:
        yield Problem(Rule.EMPTY_TURN, "an assistant turn has neither text nor calls")
    for marker in MARKERS:
        if marker in message.content or marker in message.reasoning:
            yield Problem(Rule.MARKER_IN_TEXT, f"the text of an assistant turn contains {marker}")


def _secret_problems(row: Row) -> Iterator[Problem]:
    """Yield a problem a kind of secret. The secret itself stays out of messages: they end up in logs and reports."""
    for kind in secrets_in(row):
        yield Problem(Rule.SECRET, f"the row holds what looks like {kind}")


def _marker_problems(call: Call) -> Iterator[Problem]:
    written = json.dumps([call.name, call.arguments], ensure_ascii=False)
    for marker in MARKERS:
        if marker in written:
            yield Problem(Rule.MARKER_IN_TEXT, f"the call of {call.name} contains {marker}")
    for marker in _FOREIGN if "<" in written or "[T" in written else ():
        if marker in written:
            yield Problem(Rule.FOREIGN_MARKER, f"the call of {call.name} contains {marker}")


def _literal_problems(call: Call) -> Iterator[Problem]:
    """Yield where an argument is a text with a list or an object as Python writes it: other programs cannot read it."""
    for name, value in call.arguments.items():
        if isinstance(value, str) and _PYTHON.match(value) and _is_python_only(value):
            yield Problem(Rule.PYTHON_LITERAL, f"{call.name}.{name} is the text of a Python literal")


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

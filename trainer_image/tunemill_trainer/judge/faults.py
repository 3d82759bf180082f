"""Classifies why a reply is wrong, with a message."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import shortened
from tunemill_trainer.judge.ast_matching import best_pairs
from tunemill_trainer.judge.exact_matching import equal_values, same_calls
from tunemill_trainer.judge.lenient import read_leniently
from tunemill_trainer.judge.replies.parsed import ParsedReply


class FaultKind(StrEnum):
    """The kinds of faults. If several apply to a reply, the first one counts."""

    NONE = ""
    CUT_OFF = "cut_off"
    BROKEN_CALL = "broken_call"
    UNWANTED_CALL = "unwanted_call"
    MISSED_CALL = "missed_call"
    HALLUCINATED_TOOL = "hallucinated_tool"
    TOO_MANY_CALLS = "too_many_calls"
    TOO_FEW_CALLS = "too_few_calls"
    WRONG_TOOL = "wrong_tool"
    MISSING_ARGUMENT = "missing_argument"
    EXTRA_ARGUMENT = "extra_argument"
    WRONG_TYPE = "wrong_type"
    WRONG_VALUE = "wrong_value"
    SPELLING = "spelling"


@dataclass(frozen=True)
class Fault:
    """Why a reply is wrong.

    Attributes:
        kind: NONE if it is both an exact match and an AST match; SPELLING if it is only an AST match.
        message: the difference to the expected calls; empty if there is none.
        lenient: whether a lenient parser finds calls where the server finds none.
    """

    kind: FaultKind
    message: str = ""
    lenient: bool = False


def fault_of(
    text: str, found: ParsedReply, expected: Sequence[Call], tools: Sequence[Tool], *, finished: bool | None
) -> Fault:
    """Return the fault of a reply.

    Args:
        text: the reply.
        found: the reply as the server parses it.
        expected: the expected calls.
        tools: the tools of the row; empty if the data has none.
        finished: whether the model ended its turn within the token limit; None if unknown.
    """
    if not found.calls and (found.error or expected):
        return _without_calls(text, found, expected, finished=finished)
    if not expected:
        if not found.calls:
            return Fault(FaultKind.NONE)
        return Fault(FaultKind.UNWANTED_CALL, f"expected no call, found a call to {_names(found.calls)}")
    offered = {tool.name for tool in tools} | {call.name for call in expected}
    if unknown := [call.name for call in found.calls if call.name not in offered]:
        return Fault(
            FaultKind.HALLUCINATED_TOOL, f"found a call to {shortened(unknown[0])}, which is not an available tool"
        )
    names, right = Counter(call.name for call in found.calls), Counter(call.name for call in expected)
    if names != right:
        kind = (
            FaultKind.TOO_MANY_CALLS
            if right < names
            else FaultKind.TOO_FEW_CALLS
            if names < right
            else FaultKind.WRONG_TOOL
        )
        return Fault(kind, f"expected a call to {_names(expected)}, found {_names(found.calls)}")
    return _of_arguments(found, expected, tools)


def _without_calls(text: str, found: ParsedReply, expected: Sequence[Call], *, finished: bool | None) -> Fault:
    lenient = read_leniently(text)
    hint = f"; only a lenient parser finds {_names(lenient)}" if lenient else ""
    if finished is False and not lenient:
        what = found.error or f"no call to {_names(expected)} was started"
        return Fault(FaultKind.CUT_OFF, f"the reply was cut off: {what}")
    if found.error:
        return Fault(FaultKind.BROKEN_CALL, f"{found.error}{hint}", bool(lenient))
    return Fault(FaultKind.MISSED_CALL, f"expected a call to {_names(expected)}, found none{hint}", bool(lenient))


def _of_arguments(found: ParsedReply, expected: Sequence[Call], tools: Sequence[Tool]) -> Fault:
    exact = same_calls(found.calls, expected)
    pairs = best_pairs(found.calls, expected, {tool.name: tool.parameters for tool in tools})
    if exact and len(pairs) == len(expected):
        return Fault(FaultKind.NONE)
    if exact:
        names = ", ".join(expected_call.name for index, expected_call in enumerate(expected) if index not in pairs)
        return Fault(FaultKind.WRONG_TYPE, f"{names}: found a number such as 2.0 where the schema requires an integer")
    free = [call for index, call in enumerate(found.calls) if index not in pairs.values()]
    for index, expected_call in enumerate(expected):
        if index not in pairs:
            call = next((call for call in free if call.name == expected_call.name), free[0])
            kind, message = _difference(expected_call.name, call.arguments, expected_call.arguments)
            if found.lost:
                message += f"; the server drops {', '.join(found.lost)}, which only a lenient parser finds"
            return Fault(kind, message)
    kind, message = FaultKind.SPELLING, ""
    for index, expected_call in enumerate(expected):
        call = found.calls[pairs[index]]
        if not equal_values(call.arguments, expected_call.arguments):
            message = _difference(expected_call.name, call.arguments, expected_call.arguments)[1]
    return Fault(kind, message)


def _difference(path: str, found: JsonObject, expected: JsonObject) -> tuple[FaultKind, str]:
    """Return the first difference between two unequal objects."""
    for name, value in expected.items():
        where = f"{path}.{name}"
        if name not in found:
            return FaultKind.MISSING_ARGUMENT, f"{where} is missing, expected {_shown(value)}"
        got = found[name]
        if not equal_values(got, value):
            if isinstance(got, dict) and isinstance(value, dict):
                return _difference(where, got, value)
            kind = FaultKind.WRONG_VALUE if _type(got) == _type(value) else FaultKind.WRONG_TYPE
            return kind, f"{where}: expected {_shown(value)}, found {_shown(got)}"
    extra = next(name for name in found if name not in expected)
    return FaultKind.EXTRA_ARGUMENT, f"{path}.{extra} is not expected, found {_shown(found[extra])}"


def _names(calls: Sequence[Call]) -> str:
    return shortened(", ".join(call.name for call in calls))


def _shown(value: JsonValue) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


def _type(value: JsonValue) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__

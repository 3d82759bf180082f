"""Says in a word and in a sentence why a reply is not right."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call, JsonObject, Tool
from tunemill_trainer.data.values import shortened
from tunemill_trainer.judge.lenient import read_leniently
from tunemill_trainer.judge.match import equal_values, same_calls
from tunemill_trainer.judge.replies.parsed import ParsedReply
from tunemill_trainer.judge.tolerant import best_pairs


class FaultKind(StrEnum):
    """What can be wrong with a reply; the first that applies is its fault."""

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
    """Why a reply is not right.

    Attributes:
        kind: NONE when it is both an exact and an AST match. SPELLING when it is an AST match and no exact one.
        message: one sentence; empty when the reply is right.
        lenient: whether a lenient reader would find calls where the server finds none.
    """

    kind: FaultKind
    message: str = ""
    lenient: bool = False


def fault_of(
    text: str, found: ParsedReply, wanted: Sequence[Call], tools: Sequence[Tool], *, finished: bool | None
) -> Fault:
    """Return what is wrong with a reply.

    Args:
        text: the reply.
        found: what the server reads in it.
        wanted: the calls of the data.
        tools: what may be called; empty when the data does not say.
        finished: whether the model ended its turn; None when nobody knows.
    """
    if not found.calls and (found.error or wanted):
        return _without_calls(text, found, wanted, finished=finished)
    if not wanted:
        if not found.calls:
            return Fault(FaultKind.NONE)
        return Fault(FaultKind.UNWANTED_CALL, f"no call is wanted, and {_names(found.calls)} is called")
    offered = {tool.name for tool in tools} | {call.name for call in wanted}
    if unknown := [call.name for call in found.calls if call.name not in offered]:
        return Fault(FaultKind.HALLUCINATED_TOOL, f"{shortened(unknown[0])} is called, which is not offered")
    names, right = Counter(call.name for call in found.calls), Counter(call.name for call in wanted)
    if names != right:
        kind = (
            FaultKind.TOO_MANY_CALLS
            if right < names
            else FaultKind.TOO_FEW_CALLS
            if names < right
            else FaultKind.WRONG_TOOL
        )
        return Fault(kind, f"expected a call of {_names(wanted)}, found {_names(found.calls)}")
    return _of_arguments(found, wanted, tools)


def _without_calls(text: str, found: ParsedReply, wanted: Sequence[Call], *, finished: bool | None) -> Fault:
    lenient = read_leniently(text)
    hint = f"; only a lenient reader would understand {_names(lenient)}" if lenient else ""
    if finished is False and not lenient:
        what = found.error or f"no call of {_names(wanted)} is begun"
        return Fault(FaultKind.CUT_OFF, f"the reply was cut off: {what}")
    if found.error:
        return Fault(FaultKind.BROKEN_CALL, f"{found.error}{hint}", bool(lenient))
    return Fault(FaultKind.MISSED_CALL, f"expected a call of {_names(wanted)}, found none{hint}", bool(lenient))


def _of_arguments(found: ParsedReply, wanted: Sequence[Call], tools: Sequence[Tool]) -> Fault:
    exact = same_calls(found.calls, wanted)
    pairs = best_pairs(found.calls, wanted, {tool.name: tool.parameters for tool in tools})
    if exact and len(pairs) == len(wanted):
        return Fault(FaultKind.NONE)
    if exact:
        names = ", ".join(want.name for index, want in enumerate(wanted) if index not in pairs)
        return Fault(FaultKind.WRONG_TYPE, f"{names}: a number such as 2.0 stands where the schema wants an integer")
    free = [call for index, call in enumerate(found.calls) if index not in pairs.values()]
    for index, want in enumerate(wanted):
        if index not in pairs:
            call = next((call for call in free if call.name == want.name), free[0])
            kind, message = _difference(want.name, call.arguments, want.arguments)
            if found.lost:
                message += f"; the server leaves out {', '.join(found.lost)}, only a lenient reader would understand it"
            return Fault(kind, message)
    kind, message = FaultKind.SPELLING, ""
    for index, want in enumerate(wanted):
        call = found.calls[pairs[index]]
        if not equal_values(call.arguments, want.arguments):
            message = _difference(want.name, call.arguments, want.arguments)[1]
    return Fault(kind, message)


def _difference(path: str, found: JsonObject, wanted: JsonObject) -> tuple[FaultKind, str]:
    """Return the first difference of two objects that are not equal."""
    for name, value in wanted.items():
        where = f"{path}.{name}"
        if name not in found:
            return FaultKind.MISSING_ARGUMENT, f"{where} is missing, expected {_shown(value)}"
        got = found[name]
        if not equal_values(got, value):
            if isinstance(got, dict) and isinstance(value, dict):
                return _difference(where, got, value)
            kind = FaultKind.WRONG_VALUE if _type(got) == _type(value) else FaultKind.WRONG_TYPE
            return kind, f"{where}: expected {_shown(value)}, found {_shown(got)}"
    extra = next(name for name in found if name not in wanted)
    return FaultKind.EXTRA_ARGUMENT, f"{path}.{extra} is not wanted, found {_shown(found[extra])}"


def _names(calls: Sequence[Call]) -> str:
    return shortened(", ".join(call.name for call in calls))


def _shown(value: JsonValue) -> str:
    return shortened(json.dumps(value, ensure_ascii=False))


def _type(value: JsonValue) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__

"""Exact match: compares the calls of a reply with the expected calls. Their order does not matter, their number does.

Equality is that of JSON: keys in any order, lists in order, numbers by value (`1` equals `1.0`, as in JSON Schema), and
`true` is not `1`. Strings must be identical. This is an equivalence relation, so counting equal calls is enough; no
search for the best pairing is needed.
"""

import json
from collections import Counter
from collections.abc import Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call


def same_tools(found: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Return whether the same tools are called, each as often as expected."""
    return Counter(call.name for call in found) == Counter(call.name for call in expected)


def same_calls(found: Sequence[Call], expected: Sequence[Call]) -> bool:
    """Return whether the same tools are called with equal arguments."""
    return Counter(map(_identity, found)) == Counter(map(_identity, expected))


def equal_calls(found: Sequence[Call], expected: Sequence[Call]) -> Counter[str]:
    """Return the number of expected calls with an equal call in the reply, by tool."""
    common = Counter(map(_identity, found)) & Counter(map(_identity, expected))
    hits: Counter[str] = Counter()
    for (name, _), count in common.items():
        hits[name] += count
    return hits


def equal_values(found: JsonValue, expected: JsonValue) -> bool:
    """Return whether two values are equal as JSON."""
    return _canonical(found) == _canonical(expected)


def _identity(call: Call) -> tuple[str, str]:
    return call.name, _canonical(call.arguments)


def _canonical(value: JsonValue) -> str:
    return json.dumps(_by_value(value), sort_keys=True)


def _by_value(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _by_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_by_value(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value

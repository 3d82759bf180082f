"""AST match of the Berkeley Function-Calling Leaderboard (BFCL), with an optimal pairing of parallel calls.

The rules follow BFCL v4's `ast_checker` (gorilla, 2026-03). Values must have the types of the tool's schema; an integer
is also a number. Strings are compared without case, spaces and the characters `,./-_*^`, and ' equals ". The order of
lists matters, that of keys does not. A missing optional argument equals the schema's default, on either side. As in
BFCL, 2.0 does not match where the schema requires an integer, although it is an exact match for 2.

BFCL pairs each parallel call with the first expected call that matches, which may be the only match of a later call.
Here, the pairing is a maximum matching.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from tunemill_trainer.data.rows import Call, JsonObject, Tool

_IGNORED = re.compile(r"[ ,./\-_*^]")

_TYPES: dict[str, Callable[[JsonValue], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
}


def ast_match(found: Sequence[Call], expected: Sequence[Call], tools: Sequence[Tool]) -> bool:
    """Return whether the calls of a reply and the expected calls can be paired completely."""
    schemas = {tool.name: tool.parameters for tool in tools}
    return len(found) == len(expected) and len(best_pairs(found, expected, schemas)) == len(expected)


def best_pairs(found: Sequence[Call], expected: Sequence[Call], schemas: Mapping[str, JsonObject]) -> dict[int, int]:
    """Return a maximum matching of calls that fit: index of the expected call → index of the found call.

    The algorithm uses shortest augmenting paths.
    """
    fitting = [
        [
            j
            for j, expected_call in enumerate(expected)
            if call_fits(call, expected_call, schemas.get(expected_call.name, {}))
        ]
        for call in found
    ]
    pairs: dict[int, int] = {}
    for i in range(len(found)):
        _place(i, fitting, pairs)
    return pairs


def _place(start: int, fitting: Sequence[Sequence[int]], pairs: dict[int, int]) -> None:
    """Pair one more found call along an augmenting path, which may change existing pairs."""
    before = {i: j for j, i in pairs.items()}
    reached_from: dict[int, int] = {}
    waiting = deque([start])
    while waiting:
        i = waiting.popleft()
        for j in fitting[i]:
            if j in reached_from:
                continue
            reached_from[j] = i
            if j in pairs:
                waiting.append(pairs[j])
                continue
            free: int | None = j
            while free is not None:
                mover = reached_from[free]
                pairs[free] = mover
                free = before.get(mover)
            return


def call_fits(found: Call, expected: Call, schema: JsonObject) -> bool:
    """Return whether a call matches the expected one; `schema` is the schema of the tool's parameters."""
    return found.name == expected.name and _Schema(schema).object_fits(found.arguments, expected.arguments, schema)


class _Schema:
    """Compares arguments under one tool's schema, resolving its internal references."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root

    def object_fits(self, found: JsonObject, expected: JsonObject, schema: JsonObject) -> bool:
        """Return whether all arguments of two calls, or all members of two objects, match."""
        return all(self._part_fits(name, found, expected, schema) for name in found.keys() | expected.keys())

    def _part_fits(self, name: str, found: JsonObject, expected: JsonObject, schema: JsonObject) -> bool:
        properties, required = schema.get("properties"), schema.get("required")
        part = self._resolved(properties.get(name) if isinstance(properties, dict) else None)
        if name in found and name in expected:
            return self._fits(found[name], expected[name], part)
        optional = not (isinstance(required, list) and name in required)
        default = part.get("default")
        return (
            optional and "default" in part and self._fits(found.get(name, default), expected.get(name, default), part)
        )

    def _fits(self, found: JsonValue, expected: JsonValue, schema: JsonObject) -> bool:
        # If the expected value violates the schema, a value of the same type is accepted.
        mistyped = not self._has_type(found, schema)
        if mistyped and (self._has_type(expected, schema) or type(found) is not type(expected)):
            return False
        if isinstance(found, dict) and isinstance(expected, dict):
            return self.object_fits(found, expected, schema)
        if isinstance(found, list) and isinstance(expected, list):
            items = self._resolved(schema.get("items"))
            return len(found) == len(expected) and all(
                self._fits(one, other, items) for one, other in zip(found, expected, strict=True)
            )
        if isinstance(found, str) and isinstance(expected, str):
            return _standardised(found) == _standardised(expected)
        if isinstance(found, bool) or isinstance(expected, bool):
            return found is expected
        return found == expected

    def _has_type(self, value: JsonValue, schema: JsonObject) -> bool:
        """Return whether a value has a type that the schema allows. Unknown types allow any value."""
        choices = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(choices, list) and choices:
            return any(self._has_type(value, self._resolved(choice)) for choice in choices)
        named = schema.get("type")
        names = named if isinstance(named, list) else [named]
        if schema.get("nullable") is True and value is None:
            return True
        return any(str(name) not in _TYPES or _TYPES[str(name)](value) for name in names)

    def _resolved(self, schema: JsonValue) -> JsonObject:
        """Return a part of the schema with `$ref` resolved; {} if it is not a schema."""
        if not isinstance(schema, dict):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        target: JsonValue = self._root
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, dict) else None
        own = {key: value for key, value in schema.items() if key != "$ref"}
        return {**target, **own} if isinstance(target, dict) and "$ref" not in target else own


def _standardised(text: str) -> str:
    return _IGNORED.sub("", unicodedata.normalize("NFC", text)).lower().replace("'", '"')

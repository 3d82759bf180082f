"""AST match: the rule of the Berkeley Function-Calling Leaderboard (BFCL), with the best pairing of parallel calls.

After BFCL v4's `ast_checker` (gorilla, 2026-03). Types are those of the tool's schema, and an integer passes for a
number; strings are compared without case, spaces and the marks `,./-_*^`, and with ' for "; lists keep their order,
objects do not; an optional argument that is absent equals the schema's default, on either side. BFCL pairs parallel
calls with the first answer that fits, which can use up the only answer that fits a later call. We look for the best
pairing. As in BFCL, 2.0 is no match where the schema wants an integer, though it is an exact one for 2.
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


def ast_match(found: Sequence[Call], wanted: Sequence[Call], tools: Sequence[Tool]) -> bool:
    """Return whether every found call fits a wanted one of its own, and none of the wanted is left."""
    schemas = {tool.name: tool.parameters for tool in tools}
    return len(found) == len(wanted) and len(best_pairs(found, wanted, schemas)) == len(wanted)


def best_pairs(found: Sequence[Call], wanted: Sequence[Call], schemas: Mapping[str, JsonObject]) -> dict[int, int]:
    """Return as many pairs as possible of wanted and found calls that fit: index among the wanted → among the found.

    It is a maximum matching, by shortest augmenting paths.
    """
    fitting = [
        [j for j, want in enumerate(wanted) if call_fits(call, want, schemas.get(want.name, {}))] for call in found
    ]
    pairs: dict[int, int] = {}
    for i in range(len(found)):
        _place(i, fitting, pairs)
    return pairs


def _place(start: int, fitting: Sequence[Sequence[int]], pairs: dict[int, int]) -> None:
    """Find a wanted call for one more found call; those that have one may have to move to another."""
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


def call_fits(found: Call, wanted: Call, schema: JsonObject) -> bool:
    """Return whether one call fits another; `schema` is that of the tool's parameters."""
    return found.name == wanted.name and _Schema(schema).object_fits(found.arguments, wanted.arguments, schema)


class _Schema:
    """Compares arguments in the light of one tool's schema, whose references point into itself."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root

    def object_fits(self, found: JsonObject, wanted: JsonObject, schema: JsonObject) -> bool:
        """Return whether all arguments of two calls fit, or all parts of two objects."""
        return all(self._part_fits(name, found, wanted, schema) for name in found.keys() | wanted.keys())

    def _part_fits(self, name: str, found: JsonObject, wanted: JsonObject, schema: JsonObject) -> bool:
        properties, required = schema.get("properties"), schema.get("required")
        part = self._resolved(properties.get(name) if isinstance(properties, dict) else None)
        if name in found and name in wanted:
            return self._fits(found[name], wanted[name], part)
        optional = not (isinstance(required, list) and name in required)
        default = part.get("default")
        return optional and "default" in part and self._fits(found.get(name, default), wanted.get(name, default), part)

    def _fits(self, found: JsonValue, wanted: JsonValue, schema: JsonObject) -> bool:
        # Where the data itself does not keep to the schema, its own type is as good.
        mistyped = not self._has_type(found, schema)
        if mistyped and (self._has_type(wanted, schema) or type(found) is not type(wanted)):
            return False
        if isinstance(found, dict) and isinstance(wanted, dict):
            return self.object_fits(found, wanted, schema)
        if isinstance(found, list) and isinstance(wanted, list):
            items = self._resolved(schema.get("items"))
            return len(found) == len(wanted) and all(
                self._fits(one, other, items) for one, other in zip(found, wanted, strict=True)
            )
        if isinstance(found, str) and isinstance(wanted, str):
            return _standardised(found) == _standardised(wanted)
        if isinstance(found, bool) or isinstance(wanted, bool):
            return found is wanted
        return found == wanted

    def _has_type(self, value: JsonValue, schema: JsonObject) -> bool:
        """Return whether a value has one of the types that the schema allows; it allows any that it does not know."""
        choices = schema.get("anyOf", schema.get("oneOf"))
        if isinstance(choices, list) and choices:
            return any(self._has_type(value, self._resolved(choice)) for choice in choices)
        named = schema.get("type")
        names = named if isinstance(named, list) else [named]
        if schema.get("nullable") is True and value is None:
            return True
        return any(str(name) not in _TYPES or _TYPES[str(name)](value) for name in names)

    def _resolved(self, schema: JsonValue) -> JsonObject:
        """Return a part of the schema with the fields of what it refers to; an unknown part allows everything."""
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

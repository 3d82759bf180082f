"""A fast check for arguments that are certainly valid. jsonschema checks all others.

A full jsonschema validation takes a fifth of the time of reading a row. Nearly all tools use only plain types, arrays
and objects, and nearly all calls are valid.
"""

from collections.abc import Callable, Mapping
from typing import cast

from pydantic import JsonValue

Check = Callable[[JsonValue], bool]

_SAYS_NOTHING = {"$schema", "title", "description", "default", "example", "examples"}
"""Keywords that do not affect validation."""

_PLAIN: Mapping[str, Check] = {
    "string": lambda value: type(value) is str,
    "integer": lambda value: type(value) is int,
    # The JSON reader accepts no infinities.
    "number": lambda value: type(value) in (int, float),
    "boolean": lambda value: type(value) is bool,
    "null": lambda value: value is None,
}


def check_of(schema: JsonValue) -> Check | None:
    """Return a function that is true only for values valid under the schema; None if it has unsupported keywords."""
    if not isinstance(schema, dict):
        return None
    kind, keywords = schema.get("type"), schema.keys() - _SAYS_NOTHING
    if kind == "object" and keywords <= {"type", "properties", "required", "additionalProperties"}:
        return _object(schema)
    if kind == "array" and keywords <= {"type", "items"}:
        return _array(schema)
    if kind == "string" and keywords == {"type", "enum"}:
        choices = schema["enum"]
        # Only strings: Python considers 1, 1.0 and true equal, JSON schema does not.
        return (lambda value: type(value) is str and value in choices) if isinstance(choices, list) else None
    return _PLAIN.get(kind) if isinstance(kind, str) and keywords == {"type"} else None


def _array(schema: dict[str, JsonValue]) -> Check | None:
    if "items" not in schema:
        return lambda value: isinstance(value, list)
    fits = check_of(schema["items"])
    if fits is None:
        return None
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _object(schema: dict[str, JsonValue]) -> Check | None:
    if not schema.keys() & {"properties", "required", "additionalProperties"}:
        return lambda value: isinstance(value, dict)
    properties, required, others = (schema.get(key) for key in ("properties", "required", "additionalProperties"))
    if not isinstance(properties, dict) or others is not False or not isinstance(required, list | None):
        return None
    checks = {name: check_of(part) for name, part in properties.items()}
    if any(check is None for check in checks.values()) or not all(isinstance(name, str) for name in required or ()):
        return None
    fits, needed = cast("dict[str, Check]", checks), frozenset(cast("list[str]", required or ()))

    def check(value: JsonValue) -> bool:
        return (
            isinstance(value, dict)
            and needed <= value.keys()
            and all(name in fits and fits[name](part) for name, part in value.items())
        )

    return check

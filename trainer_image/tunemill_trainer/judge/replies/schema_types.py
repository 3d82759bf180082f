"""Converts arguments in plain text to the types in their tool's schema, as vLLM does.

`2` becomes a number if the schema says integer, and stays a string if it says string, or if there is no schema. The
first type that fits wins, in the order null, integer, number, boolean, object, array, string.
"""

import json
import math
from collections.abc import Callable, Sequence
from typing import cast

from pydantic import JsonValue

from tunemill_trainer.data.rows import JsonObject, Tool

_OTHER_NAMES = {
    **dict.fromkeys(("str", "text", "varchar", "char", "enum"), "string"),
    **dict.fromkeys(("int", "int32", "int64", "uint", "uint32", "uint64", "long", "short", "unsigned"), "integer"),
    **dict.fromkeys(("float", "float32", "float64", "double"), "number"),
    **dict.fromkeys(("arr", "list", "sequence"), "array"),
    "bool": "boolean",
    "dict": "object",
}


def with_schema_types(arguments: str, name: str, tools: Sequence[Tool]) -> str:
    """Convert arguments, as the text of a JSON object, to the types in the tool's schema. Other text is unchanged."""
    schema = next((tool.parameters for tool in tools if tool.name == name), {})
    properties = schema.get("properties")
    if not isinstance(properties, dict) or not properties:
        return arguments
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    if not isinstance(value, dict):
        return arguments
    return json.dumps(_object(value, properties), ensure_ascii=False)


def types_of(schema: JsonValue) -> set[str]:
    """Return the types that a schema allows: by `type`, by the values of `enum`, and in its alternatives."""
    if not isinstance(schema, dict):
        return {"string"}
    found: set[str] = set()
    named = schema.get("type")
    found.update(item for item in (named if isinstance(named, list) else [named]) if isinstance(item, str))
    values = schema.get("enum")
    if isinstance(values, list):
        found.update(_type(value) for value in values)
    for field in ("anyOf", "oneOf", "allOf"):
        choices = schema.get(field)
        if isinstance(choices, list):
            found.update(*map(types_of, choices))
    return found or {"string"}


def _type(value: JsonValue) -> str:
    for python, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, python):
            return name
    return "null" if value is None else "object"


def _object(value: JsonObject, properties: JsonObject) -> JsonObject:
    return {
        name: _value(item, schema) if isinstance(schema := properties.get(name), dict) else item
        for name, item in value.items()
    }


def _value(value: JsonValue, schema: JsonObject) -> JsonValue:
    if isinstance(value, str):
        return typed(value, types_of(schema))
    if isinstance(value, dict):
        properties = schema.get("properties")
        return _object(value, properties) if isinstance(properties, dict) else value
    if isinstance(value, list):
        items = schema.get("items")
        return [_value(item, items) for item in value] if isinstance(items, dict) else value
    return typed(json.dumps(value, ensure_ascii=False), types_of(schema))


def typed(text: str, types: set[str]) -> JsonValue:
    """Convert text to the first of the types that fits; unchanged if none does."""
    known = {_OTHER_NAMES.get(name.strip().lower(), name.strip().lower()) for name in types}
    for name, read in _READERS.items():
        if name in known:
            try:
                return read(text)
            except ValueError:
                continue
    if "string" in known:
        return text
    try:
        return _finite(json.loads(text))
    except ValueError:
        return text


def _null(text: str) -> JsonValue:
    if text.lower() != "null":
        raise ValueError(text)
    return None


def _number(text: str) -> JsonValue:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return int(value) if value == int(value) else value


def _boolean(text: str) -> JsonValue:
    word = text.lower().strip()
    if word not in ("true", "1", "false", "0"):
        raise ValueError(text)
    return word in ("true", "1")


def _finite(value: object) -> JsonValue:
    json.dumps(value, allow_nan=False)
    return cast("JsonValue", value)


_READERS: dict[str, Callable[[str], JsonValue]] = {
    "null": _null,
    "integer": int,
    "number": _number,
    "boolean": _boolean,
    "object": lambda text: _finite(json.loads(text)),
    "array": lambda text: _finite(json.loads(text)),
}

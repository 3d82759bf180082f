"""The JSON schemas of tools: read with what public data makes of them, and turned into what checks a call.

What is shown to the model stays as the data has it, because a server will show it so; only the names of types and what
a table filled in are corrected. What checks a call is stricter, and knows more dialects: see `checker`.
"""

import re
from collections.abc import Callable, Iterator
from typing import cast

from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from pydantic import JsonValue
from referencing import Registry

from tunemill_trainer.data import quick
from tunemill_trainer.data.memo import Memo
from tunemill_trainer.data.rows import JsonObject

_JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_PYTHON_TYPES = {
    "str": "string",
    "text": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "sequence": "array",
    "dict": "object",
    "mapping": "object",
    "hashmap": "object",
}
"""What public data calls the types of JSON schema."""

_OPTIONAL = re.compile(r"(?:typing\.)?optional\[(.*)\]\Z", re.IGNORECASE | re.DOTALL)
_GENERIC = re.compile(r"(?:typing\.)?(\w+)\[(.*)\]\Z", re.IGNORECASE | re.DOTALL)
_MEANINGFUL_NULLS = {"default", "const", "example"}

_OF_PARTS = ("items", "prefixItems", "additionalProperties")
_OF_NAMES = ("properties", "patternProperties")
_OF_CHOICES = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "contains", "propertyNames")
_OF_DEFINITIONS = ("$defs", "definitions", "dependentSchemas")
"""The keywords with schemas inside: for parts of a value, by name; for the same value once more; to be referred to."""
_SPREADS = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")
"""Keywords by which an object may have properties that do not stand in its own `properties`."""

_LONGEST_PATTERN = 4096

_DRAFTS = (Draft202012Validator, Draft7Validator, Draft4Validator)


def cleaned(node: JsonObject) -> JsonObject:
    """Return a schema with JSON's type names, and without the nulls that a table filled in."""
    kept = {key: value for key, value in node.items() if value is not None or key in _MEANINGFUL_NULLS}
    kind = kept.get("type")
    if isinstance(kind, str):
        typed = type_of(kind)
        if typed:
            kept |= {key: value for key, value in typed.items() if key == "type" or key not in kept}
        elif kind.lower() == "any" or "[" in kind:
            del kept["type"]
    elif isinstance(kind, list):
        kept["type"] = [type_of(each).get("type", each) if isinstance(each, str) else each for each in kind]
    if isinstance(properties := kept.get("properties"), dict):
        kept["properties"] = {name: item for name, item in properties.items() if item is not None}
        _lift_required(kept)
    return _with_parts(kept, cleaned)


def refuse_wrong(schema: JsonObject) -> None:
    """Check that a schema keeps to one of the drafts.

    Raises:
        jsonschema.SchemaError: what the newest draft says.
        RecursionError: it is nested too deeply.
    """
    if any(len(pattern) > _LONGEST_PATTERN for pattern in _patterns(schema)):
        # Checking a schema compiles its patterns, and Python keeps the last 512 of them.
        raise SchemaError(f"a pattern is longer than {_LONGEST_PATTERN} characters")
    _draft_of(schema)


def _patterns(schema: JsonObject) -> Iterator[str]:
    """Yield all that could be a pattern in a schema, however deep."""
    parts: list[JsonValue] = [schema]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part
        elif isinstance(part, dict):
            parts += part.values()
            if isinstance(pattern := part.get("pattern"), str):
                yield pattern
            if isinstance(named := part.get("patternProperties"), dict):
                yield from named


def type_of(annotation: str) -> JsonObject:
    """Return the JSON schema of a Python annotation such as `List[int]` or `str, optional`; {} allows anything."""
    kind = re.sub(r",\s*(optional|default\b.*)\Z", "", annotation.strip(), flags=re.IGNORECASE).strip()
    if optional := _OPTIONAL.match(kind):
        return type_of(optional.group(1))
    if generic := _GENERIC.match(kind):
        outer = type_of(generic.group(1))
        if outer.get("type") == "array" and generic.group(1).lower() != "tuple":
            items = type_of(generic.group(2))
            return {**outer, "items": items} if items else outer
        return outer
    name = _PYTHON_TYPES.get(kind.lower(), kind.lower())
    return {"type": name} if name in _JSON_TYPES else {}


def _make_checker(parameters: JsonObject) -> Validator:
    # With a registry of its own it resolves references inside the schema and fetches none from the network.
    return _draft_of(parameters)(_checkable(parameters, closed=True), registry=Registry())


checker = Memo(_make_checker, size_of=lambda parameters: len(repr(parameters)))
"""What checks the arguments of a call against a tool's parameters.

Stricter than JSON schema: an object that lists its properties has no others, unless it says so. Looser in one thing:
`nullable`, OpenAPI's word, allows null.
"""


def _make_quick_check(parameters: JsonObject) -> quick.Check:
    return quick.check_of(_checkable(parameters, closed=True)) or (lambda _arguments: False)


surely_fits = Memo(_make_quick_check, size_of=lambda parameters: len(repr(parameters)))
"""A function that is true only for arguments without fault; where it is false, `checker` has to look."""


def allows_null(validator: Validator, schema: JsonValue) -> bool:
    """Return whether a part of a checker's schema takes null.

    Raises:
        referencing.exceptions.Unresolvable, RecursionError: the schema refers to nothing, or only to itself.
    """
    return isinstance(schema, dict) and bool(validator.evolve(schema=schema).is_valid(None))


def _draft_of(schema: JsonObject) -> type[Validator]:
    """Return the newest draft that a schema keeps to, whatever it says of itself: few say it, and some are wrong."""
    wrong: SchemaError | None = None
    for draft in _DRAFTS:
        try:
            draft.check_schema(schema)
        except SchemaError as error:
            wrong = wrong or error
        else:
            return cast("type[Validator]", draft)
    assert wrong is not None
    raise wrong


def _lift_required(node: JsonObject) -> None:
    """Turn `required` beside a property, which is true or false there, into the object's list of names."""
    properties = cast("JsonObject", node["properties"])
    needed: list[JsonValue] = []
    for name, item in properties.items():
        if isinstance(item, dict) and isinstance(item.get("required"), bool):
            needed += [name] if item["required"] else []
            properties[name] = {key: value for key, value in item.items() if key != "required"}
    if needed:
        node.setdefault("required", needed)


def _checkable(node: JsonObject, *, closed: bool) -> JsonObject:
    """Return a schema that says all that is checked.

    Args:
        node: as it is shown.
        closed: whether objects that list their properties have no others. Not so in what `allOf` and the like hold:
            there the properties of one place are the others' too.
    """
    result = dict(node)
    if node.get("nullable") is True:
        result |= {
            key: [*_listed(node[key]), None if key == "enum" else "null"] for key in ("type", "enum") if key in node
        }
    if closed and "properties" in node and not node.keys() & {"additionalProperties", "unevaluatedProperties"}:
        word = "unevaluatedProperties" if node.keys() & set(_SPREADS) else "additionalProperties"
        result = {word: False, **result}
    return _with_parts(
        result,
        lambda part: _checkable(part, closed=closed),
        lambda part: _checkable(part, closed=False),
    )


def _with_parts(
    node: JsonObject,
    change: Callable[[JsonObject], JsonObject],
    change_choice: Callable[[JsonObject], JsonObject] | None = None,
) -> JsonObject:
    """Return a schema with the schemas in it changed; those for the same value, and definitions, in their own way."""
    changes = dict.fromkeys((*_OF_PARTS, *_OF_NAMES), change)
    changes |= dict.fromkeys((*_OF_CHOICES, *_OF_DEFINITIONS), change_choice or change)

    def changed(key: str, value: JsonValue) -> JsonValue:
        if isinstance(value, list):
            return [changes[key](item) if isinstance(item, dict) else item for item in value]
        if not isinstance(value, dict):
            return value
        if key in _OF_NAMES or key in _OF_DEFINITIONS:
            return {name: changes[key](item) if isinstance(item, dict) else item for name, item in value.items()}
        return changes[key](value)

    return {key: changed(key, value) if key in changes else value for key, value in node.items()}


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]

"""The JSON schemas of tools: parses the dialects in public data, and builds validators for calls.

The schema that the model sees stays as in the data, because a server will show it like that. Only names of types and
nulls from tables are corrected. The validator of calls is stricter and supports more dialects; see `checker`.
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
from tunemill_trainer.data.caches import IdentityCache
from tunemill_trainer.data.findings import RowError, Rule
from tunemill_trainer.data.rows import JsonObject
from tunemill_trainer.data.values import read_object

_JSON_TYPES = frozenset({"string", "integer", "number", "boolean", "array", "object", "null"})
_OTHER_TYPES = {
    "string": "str text char character varchar",
    "integer": "int long short byte bigint int8 int16 int32 int64 uint uint8 uint16 uint32 uint64",
    "number": "float double decimal num numeric float32 float64",
    "boolean": "bool",
    "array": "list tuple set sequence arraylist vector slice iterable",
    "object": "dict dictionary mapping map hashmap struct record json",
    "null": "none nil undefined void nonetype",
}
_TYPES = {other: name for name, others in _OTHER_TYPES.items() for other in others.split()}
"""Names of types in public data, from Python, Java, JavaScript, Go, C# and SQL, with their JSON schema types."""
_ANYTHING = frozenset({"any", "mixed", "unknown", "dynamic", "typing.any"})

_OPTIONAL = re.compile(r"(?:typing\.)?optional\[(.*)\]\Z", re.IGNORECASE | re.DOTALL)
_GENERIC = re.compile(r"(?:typing\.)?(\w+)(?:\[(.+)\]|<(.+)>)\Z", re.IGNORECASE | re.DOTALL)
_ELEMENTS = re.compile(r"([\w.]+)\[\]\Z")
_MAY_LACK = re.compile(r"optional|,\s*default\b", re.IGNORECASE)
_OF_SCHEMAS = frozenset(
    {
        *("$schema", "$id", "$defs", "definitions", "$ref", "title", "description", "type", "properties", "required"),
        *("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties", "maxProperties"),
        *("allOf", "anyOf", "oneOf", "not", "strict"),
    }
)
"""Keywords at the top level of a schema of arguments."""
_MEANINGFUL_NULLS = {"default", "const", "example"}

_OF_PARTS = ("items", "prefixItems", "additionalProperties")
_OF_NAMES = ("properties", "patternProperties")
_OF_CHOICES = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "contains", "propertyNames")
_OF_DEFINITIONS = ("$defs", "definitions", "dependentSchemas")
"""The keywords that contain schemas: for parts of the value, for named parts, for the same value, and definitions."""
_SPREADS = ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")
"""Keywords that can allow properties that are not in the object's `properties`."""

_LONGEST_PATTERN = 4096

_DRAFTS = (Draft202012Validator, Draft7Validator, Draft4Validator)


def cleaned(node: JsonObject) -> JsonObject:
    """Return a schema with JSON schema type names, and without the nulls of absent fields that a table adds."""
    kept = {key: value for key, value in node.items() if value is not None or key in _MEANINGFUL_NULLS}
    kind = kept.get("type")
    if isinstance(kind, str):
        typed = type_of(kind)
        if typed:
            kept |= {key: value for key, value in typed.items() if key == "type" or key not in kept}
        elif kind.lower() in _ANYTHING or "[" in kind or (kind.lower() == "enum" and "enum" in kept):
            del kept["type"]
    elif isinstance(kind, list):
        kept["type"] = [type_of(each).get("type", each) if isinstance(each, str) else each for each in kind]
    if kept.get("properties") == []:
        kept["properties"] = {}  # as PHP writes an empty object
    if isinstance(properties := kept.get("properties"), dict):
        kept["properties"] = {
            name: {"type": item} if isinstance(item, str) and type_of(item) else item
            for name, item in properties.items()
            if item is not None
        }
        _lift_required(kept)
    if isinstance(kept.get("required"), bool):
        del kept["required"]  # as in draft 3, but outside an object's properties
    return _with_parts(kept, cleaned)


def is_schema(parameters: JsonObject) -> bool:
    """Return whether a tool's parameters are a JSON schema, and not just parameter names with their descriptions."""
    kind = parameters.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and type_of(kind).get("type") == "object"):
        return True
    words = parameters.keys() & _OF_SCHEMAS
    if len(words) == len(parameters):
        # Parameters can have the names of keywords, too. Then their value is an object that describes them.
        return not any(isinstance(parameters.get(word), dict) for word in ("type", "title", "description", "required"))
    bare = all(
        item is None or isinstance(item, dict) or (isinstance(item, str) and bool(type_of(item)))
        for item in parameters.values()
    )
    return bool(words) and not bare


def from_bare_parameters(parameters: JsonObject, tool: str) -> JsonObject:
    """Return the schema of parameters that are listed without a schema, with type names of any language.

    Args:
        parameters: for each name, an object with type and description, or the name of a type.
        tool: the name of the tool, for messages.

    Raises:
        RowError: BROKEN_TOOL.
    """
    properties: JsonObject = {}
    required: list[JsonValue] = []
    for parameter, described in parameters.items():
        if described is None:
            # In a table, each tool has nulls for the parameters of all others.
            continue
        typed_only: JsonObject = {"type": described} if isinstance(described, str) and type_of(described) else {}
        schema = typed_only or read_object(described, Rule.BROKEN_TOOL, f"the parameter {parameter} of {tool}")
        kind, needed = schema.get("type"), schema.get("required")
        lacking = "default" in schema or (isinstance(kind, str) and bool(_MAY_LACK.search(kind)))
        if needed is True or (not lacking and needed is not False):
            required.append(parameter)
        typed = type_of(kind) if isinstance(kind, str) else {}
        # In JSON schema, `required` of a property would list the names in it.
        dropped = {"required"} if not isinstance(needed, list) else set()
        dropped |= {"type"} if isinstance(kind, str) or kind is None else set()
        kept = {key: part for key, part in schema.items() if key not in dropped and part is not None}
        properties[parameter] = {**typed, **kept}
    return {"type": "object", "properties": properties, "required": required}


def from_parameter_list(parameters: list[JsonValue], tool: str) -> JsonObject:
    """Return the schema of parameters that are a list of objects, each with a `name`.

    Raises:
        RowError: BROKEN_TOOL.
    """
    bare: JsonObject = {}
    for item in parameters:
        described = read_object(item, Rule.BROKEN_TOOL, f"a parameter of {tool}")
        name = described.get("name")
        if not isinstance(name, str) or not name:
            raise RowError(Rule.BROKEN_TOOL, f"a parameter of {tool} has no `name`")
        bare[name] = {key: value for key, value in described.items() if key != "name"}
    return from_bare_parameters(bare, tool)


def check_schema(schema: JsonObject) -> None:
    """Check that a schema is valid under one of the supported drafts.

    Raises:
        jsonschema.SchemaError: the error under the newest draft.
        RecursionError: the schema is nested too deeply.
    """
    if any(len(pattern) > _LONGEST_PATTERN for pattern in _patterns(schema)):
        # Checking a schema compiles its patterns, and Python caches the last 512 of them.
        raise SchemaError(f"a pattern is longer than {_LONGEST_PATTERN} characters")
    _draft_of(schema)


def _patterns(schema: JsonObject) -> Iterator[str]:
    """Yield all strings in a schema that may be regular expressions, at any depth."""
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
    if elements := _ELEMENTS.match(kind):
        items = type_of(elements.group(1))
        return {"type": "array", "items": items} if items else {"type": "array"}
    if generic := _GENERIC.match(kind):
        outer = type_of(generic.group(1))
        if outer.get("type") == "array" and generic.group(1).lower() != "tuple":
            items = type_of(generic.group(2) or generic.group(3))
            return {**outer, "items": items} if items else outer
        return outer
    if "|" in kind:
        choices = [type_of(choice).get("type") for choice in kind.split("|")]
        return {"type": [*dict.fromkeys(choices)]} if all(choices) else {}
    name = _TYPES.get(kind.lower(), kind.lower())
    return {"type": name} if name in _JSON_TYPES else {}


def _make_checker(parameters: JsonObject) -> Validator:
    # With an empty registry, references resolve only inside the schema and are never fetched from the network.
    return _draft_of(parameters)(_checkable(parameters, closed=True), registry=Registry())


checker = IdentityCache(_make_checker, size_of=lambda parameters: len(repr(parameters)))
"""Returns a validator for the arguments of a call to a tool with the given parameters.

It is stricter than JSON schema: an object with `properties` allows no others unless `additionalProperties` or
`unevaluatedProperties` says so, and a tool with empty `properties` takes no arguments. An object without `properties`
allows any. It is looser in one point: `nullable` from OpenAPI allows null.
"""


def _make_quick_check(parameters: JsonObject) -> quick.Check:
    return quick.check_of(_checkable(parameters, closed=True)) or (lambda _arguments: False)


quick_check = IdentityCache(_make_quick_check, size_of=lambda parameters: len(repr(parameters)))
"""Returns a fast check that is true only for valid arguments. If it is false, `checker` must decide."""


def allows_null(validator: Validator, schema: JsonValue) -> bool:
    """Return whether a part of a validator's schema allows null.

    Raises:
        referencing.exceptions.Unresolvable, RecursionError: a reference cannot be resolved, or is circular.
    """
    return isinstance(schema, dict) and bool(validator.evolve(schema=schema).is_valid(None))


def _draft_of(schema: JsonObject) -> type[Validator]:
    """Return the newest draft under which a schema is valid. Few schemas have a `$schema`, and some are wrong."""
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
    """Convert the boolean `required` of properties into the object's `required` list."""
    properties = cast("JsonObject", node["properties"])
    needed: list[JsonValue] = []
    for name, item in properties.items():
        if isinstance(item, dict) and isinstance(item.get("required"), bool):
            needed += [name] if item["required"] else []
            properties[name] = {key: value for key, value in item.items() if key != "required"}
    if needed:
        node.setdefault("required", needed)


def _checkable(parameters: JsonObject, *, closed: bool) -> JsonObject:
    """Return the schema that `checker` validates the arguments of a tool with."""
    checked = _checkable_part(parameters, closed=closed)
    explicit = parameters.keys() & {"additionalProperties", "unevaluatedProperties"}
    if not closed or explicit or parameters.get("properties"):
        return checked
    if parameters.keys() & set(_SPREADS):
        return {**checked, "unevaluatedProperties": False} if "'properties'" in repr(parameters) else checked
    # Empty `properties` declare a tool without arguments.
    return {**checked, "additionalProperties": False} if "properties" in parameters else checked


def _checkable_part(node: JsonObject, *, closed: bool) -> JsonObject:
    """Return a part of a schema with the rules of `checker` made explicit.

    Args:
        node: the part as shown to the model.
        closed: whether objects with `properties` allow no others. False inside `allOf` and similar keywords, where the
            properties of all subschemas apply to the same object.
    """
    result = dict(node)
    if node.get("nullable") is True:
        result |= {
            key: [*_listed(node[key]), None if key == "enum" else "null"] for key in ("type", "enum") if key in node
        }
    if closed and node.get("properties") and not node.keys() & {"additionalProperties", "unevaluatedProperties"}:
        word = "unevaluatedProperties" if node.keys() & set(_SPREADS) else "additionalProperties"
        result = {word: False, **result}
    return _with_parts(
        result,
        lambda part: _checkable_part(part, closed=closed),
        lambda part: _checkable_part(part, closed=False),
    )


def _with_parts(
    node: JsonObject,
    change: Callable[[JsonObject], JsonObject],
    change_choice: Callable[[JsonObject], JsonObject] | None = None,
) -> JsonObject:
    """Return a schema with `change` applied to its subschemas.

    `change_choice`, if given, is applied instead to definitions and to the subschemas of `allOf` and similar keywords.
    """
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

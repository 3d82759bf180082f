"""Converts a pydantic model to the structural OpenAPI schema that a CustomResourceDefinition requires.

Structural schemas are a subset of JSON Schema: no references, no unions, no `additionalProperties: false` (the API
server handles unknown fields itself). An optional field may be absent, but not null.
"""

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]

_DROPPED = {"title", "$defs", "discriminator", "const", "default"}
_INT32_MAX = 2**31 - 1


def structural_schema(model: type[BaseModel]) -> Schema:
    """Return the schema of a model, with its descriptions, defaults and CEL rules.

    Raises:
        TypeError: the type of a field has no structural form, for example a union.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _inlined(schema, schema.get("$defs", {}), model.__name__)


def without_empty_defaults(schema: Schema) -> Schema:
    """Return the schema without empty defaults: "", [], 0, false, and {} if no field below has a default."""
    kept, properties = dict(schema), schema.get("properties", {})
    if properties:
        kept["properties"] = {name: without_empty_defaults(child) for name, child in properties.items()}
    if isinstance(schema.get("items"), dict):
        kept["items"] = without_empty_defaults(schema["items"])
    if not kept.get("default") and not any("default" in child for child in kept.get("properties", {}).values()):
        kept.pop("default", None)
    return kept


def _inlined(node: Schema, definitions: dict[str, Schema], path: str) -> Schema:
    if "$ref" in node:
        siblings = {key: value for key, value in node.items() if key != "$ref"}
        return _inlined({**definitions[node["$ref"].removeprefix("#/$defs/")], **siblings}, definitions, path)
    if "anyOf" in node:
        siblings = {key: value for key, value in node.items() if key != "anyOf"}
        return _inlined({**_non_null_alternative(node["anyOf"], path), **siblings}, definitions, path)
    out: Schema = {"enum": [node["const"]]} if "const" in node else {}
    for key, value in node.items():
        if key == "properties":
            out[key] = {name: _inlined(child, definitions, f"{path}.{name}") for name, child in value.items()}
        elif key in {"items", "additionalProperties"} and isinstance(value, dict):
            out[key] = _inlined(value, definitions, f"{path}[]")
        elif key == "description":
            out[key] = " ".join(value.split())
        elif key not in _DROPPED:
            out[key] = value
    if node.get("default") is not None:
        out["default"] = _minimal_default(node["default"], out)
    return _kubernetes_form(out)


def _kubernetes_form(schema: Schema) -> Schema:
    if schema.get("type") == "integer":
        schema["format"] = "int32" if schema.get("maximum", _INT32_MAX + 1) <= _INT32_MAX else "int64"
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("additionalProperties") is False:
        schema.pop("additionalProperties", None)
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    return schema


def _non_null_alternative(alternatives: list[Schema], path: str) -> Schema:
    """Return the schema of an optional field when it is present. `Reason | str` becomes a string."""
    present = [each for each in alternatives if each.get("type") != "null"]
    if len(present) > 1 and present[-1].get("type") == "string":
        return present[-1]
    if len(present) != 1:
        raise TypeError(f"{path}: a union has no structural schema")
    return present[0]


def _minimal_default(default: Any, schema: Schema) -> Any:  # noqa: ANN401 - any JSON value
    """Return a default without what the API server fills in itself: nulls and the defaults of nested fields."""
    if isinstance(default, list):
        return [_minimal_default(item, schema.get("items", {})) for item in default]
    if not isinstance(default, dict):
        return default
    below = schema.get("properties", {})
    kept = {name: _minimal_default(value, below.get(name, {})) for name, value in default.items() if value is not None}
    return {name: value for name, value in kept.items() if below.get(name, {}).get("default") != value}

"""What an API server stores of an object: fields of the CRD only, with defaults."""

from copy import deepcopy
from functools import cache
from typing import Any

from tunemill_api.crd import object_schema, profile_schema

Json = dict[str, Any]


_finetune, _profile = cache(object_schema), cache(profile_schema)


def stored_finetune(body: Json) -> Json:
    """Return a FunctionCallFineTune as an API server with the present CRD returns it."""
    return {**body, **_in_schema({name: body[name] for name in ("spec", "status") if name in body}, _finetune())}


def stored_profile(body: Json) -> Json:
    """Return a FineTuneProfile as an API server with the present CRD returns it."""
    return {**body, **_in_schema({"spec": body.get("spec", {})}, _profile())}


def _in_schema(value: Any, schema: Json) -> Any:
    """Return a value pruned and defaulted, as https://kubernetes.io/docs describes it for structural schemas."""
    if isinstance(value, list):
        return [_in_schema(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    properties, others = schema.get("properties", {}), schema.get("additionalProperties")
    if isinstance(others, dict):
        return {name: _in_schema(item, others) for name, item in value.items()}
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return deepcopy(value)
    known = {name: value[name] for name in properties if value.get(name) is not None}
    defaults = {name: deepcopy(child["default"]) for name, child in properties.items() if "default" in child}
    return {name: _in_schema(item, properties[name]) for name, item in {**defaults, **known}.items()}

"""Schemas of the two specs, and which defaults the API server writes into objects.

Fields that a FineTuneProfile can preset have no default: such a field is present only if the user wrote it. Defaults
without information (empty strings and lists, zero, false) and the settings of methods are left out, too. Each default
that the API server writes makes the object harder to read and its writes more expensive.
"""

import json
from typing import Any

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS, FineTuneProfileSpec
from tunemill_api.structural import Schema, structural_schema, without_empty_defaults

METHOD_SETTINGS = ("adapter.lora", "adapter.adalora", "adapter.ia3")
"""Settings of each method. Their fields get defaults only if the user writes the block, so that the API server does not
write the settings of a method that was not chosen."""


def finetune_spec_schema() -> Schema:
    """Return the schema of a FunctionCallFineTune's spec. Defaults of preset fields are in their descriptions only."""
    spec = structural_schema(FineTuneSpec)
    for path in PRESET_FIELDS:
        field = _at(spec, path)
        default = field.pop("default", None)
        if "additionalProperties" in field:  # else server-side apply would leave an empty map behind
            field["x-kubernetes-map-type"] = "atomic"
        if default not in (None, "", [], {}):
            field["description"] += f" Default if no profile sets it: {json.dumps(default)}."
    for path in METHOD_SETTINGS:
        del _at(spec, path)["default"]
    return without_empty_defaults(spec)


def profile_spec_schema() -> Schema:
    """Return the schema of a FineTuneProfile's spec. Its defaults are fields of the other spec, with their rules."""
    profile, finetune = structural_schema(FineTuneProfileSpec), structural_schema(FineTuneSpec)
    defaults = profile["properties"]["defaults"]
    defaults |= {"properties": {}, "default": {}}
    defaults.pop("additionalProperties", None)
    for path in PRESET_FIELDS:
        there, here = finetune, defaults
        *parents, last = path.split(".")
        for name in parents:
            there = there["properties"][name]
            part = {"type": "object", "description": there["description"], "properties": {}}
            here = here["properties"].setdefault(name, part)
        field = there["properties"][last]
        here["properties"][last] = {key: value for key, value in field.items() if key != "default"}
    return profile


def _at(schema: Schema, path: str) -> Any:  # noqa: ANN401 - a schema
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema

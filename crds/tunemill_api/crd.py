"""Builds the CustomResourceDefinitions from the models."""

from typing import Any

from tunemill_api.constants import (
    GROUP,
    KIND,
    PLURAL,
    PROFILE_KIND,
    PROFILE_PLURAL,
    PROFILE_SHORT_NAME,
    PROFILE_SINGULAR,
    SHORT_NAME,
    SINGULAR,
    VERSION,
)
from tunemill_api.profile import FineTuneProfileStatus
from tunemill_api.spec_schemas import finetune_spec_schema, profile_spec_schema
from tunemill_api.status import FineTuneStatus
from tunemill_api.structural import Schema, structural_schema, without_empty_defaults

NAME_LENGTH = 45
"""Maximum length of an object's name. A Job's name consists of it, the stage and eight digits, and is the value of a
pod label: at most 63 characters."""

COLUMNS = [
    ("Phase", "string", ".status.phase", 0, "Phase of the run"),
    ("Progress", "string", ".status.progress", 0, "Progress of the running stage"),
    ("ETA", "string", ".status.eta", 0, "Remaining time of the running stage"),
    ("Score", "string", ".status.score", 0, "Exact match of the tuned model on the held-out rows"),
    ("Gain", "string", ".status.gain", 0, "Difference of the score to the base model"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the object was created"),
    ("Reason", "string", ".status.failure.reason", 1, "Why the run failed or waits"),
    ("Run", "string", ".status.run.id", 1, "ID of the current run"),
    ("Model", "string", ".spec.baseModel.id", 1, "Base model"),
    ("Queue", "string", ".status.queue.name", 1, "LocalQueue of the current Job"),
    ("Profile", "string", ".status.profile.name", 1, "FineTuneProfile of the run"),
    ("Revision", "string", ".status.published.revision", 1, "Published commit"),
]

PROFILE_COLUMNS = [
    ("Default", "boolean", ".spec.default", 0, "Whether the profile applies to objects without spec.profile"),
    ("Namespaces", "string", ".spec.namespaces", 0, "Namespaces that may use the profile; empty means all"),
    ("GPUs", "integer", ".spec.limits.maxGpus", 0, "Maximum number of GPUs of a run"),
    ("GPU-Hours", "string", ".spec.limits.maxGpuHours", 0, "Maximum GPU hours of a run"),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0, "Whether the profile is valid"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the profile was created"),
]


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD of FunctionCallFineTune, ready to be written as YAML."""
    version = {
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(COLUMNS),
        "selectableFields": [{"jsonPath": ".spec.baseModel.id"}],
    }
    names = _names(KIND, PLURAL, SINGULAR, SHORT_NAME)
    return _definition(names, "Namespaced", version, object_schema())


def profile_resource_definition() -> dict[str, Any]:
    """Return the CRD of FineTuneProfile, ready to be written as YAML."""
    version = {"subresources": {"status": {}}, "additionalPrinterColumns": _columns(PROFILE_COLUMNS)}
    names = _names(PROFILE_KIND, PROFILE_PLURAL, PROFILE_SINGULAR, PROFILE_SHORT_NAME)
    return _definition(names, "Cluster", version, profile_schema())


def object_schema() -> Schema:
    """Return the schema of a whole FunctionCallFineTune."""
    whole = structural_schema(FineTuneStatus)
    status = without_empty_defaults(whole) | {"default": {}}
    # kstatus treats an object without observedGeneration as ready, so 0 must be present. In `prepared`, a 0, such as
    # that of invalidRows, is information.
    for name in ("observedGeneration", "prepared"):
        status["properties"][name] = whole["properties"][name]
    parts = {"spec": finetune_spec_schema(), "status": status}
    what = "A FunctionCallFineTune fine-tunes a model for function calling, evaluates it and publishes it."
    return {
        **_object(KIND, what, parts),
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {NAME_LENGTH}",
                "message": f"metadata.name must have at most {NAME_LENGTH} characters, as names of Jobs contain it",
            },
            {
                "rule": "!self.metadata.name.contains('.') || !has(self.spec.compute) || "
                "!has(self.spec.compute.nodes) || self.spec.compute.nodes == 1",
                "message": "metadata.name must have no dots with compute.nodes above 1, as host names contain it",
            },
        ],
    }


def profile_schema() -> Schema:
    """Return the schema of a whole FineTuneProfile."""
    what = "A FineTuneProfile contains a platform team's defaults and limits for FunctionCallFineTunes."
    status = without_empty_defaults(structural_schema(FineTuneProfileStatus))
    return _object(PROFILE_KIND, what, {"spec": profile_spec_schema(), "status": status})


def _object(kind: str, what: str, parts: Schema) -> Schema:
    return {
        "type": "object",
        "description": what,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{kind}."},
            "metadata": {"type": "object"},
            **parts,
        },
    }


def _names(kind: str, plural: str, singular: str, short_name: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": singular,
        "shortNames": [short_name],
        "categories": ["tunemill"],
    }


def _definition(names: dict[str, Any], scope: str, version: dict[str, Any], schema: Schema) -> dict[str, Any]:
    served = {"name": VERSION, "served": True, "storage": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": names,
            "versions": [{**served, **version, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def _columns(columns: list[tuple[str, str, str, int, str]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
        for name, kind, path, priority, description in columns
    ]

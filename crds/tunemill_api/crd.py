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
"""A Job is named after the object, its stage and eight digits, and a Job's name is a label of its pods: at most 63
characters."""

COLUMNS = [
    ("Phase", "string", ".status.phase", 0, "How far the run is"),
    ("Progress", "string", ".status.progress", 0, "Of the running stage"),
    ("ETA", "string", ".status.eta", 0, "Until the running stage ends"),
    ("Score", "string", ".status.score", 0, "Exact match of the tuned model on the held-out rows"),
    ("Gain", "string", ".status.gain", 0, "Its difference to the base model"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Since the object was created"),
    ("Reason", "string", ".status.failure.reason", 1, "Why it failed or waits"),
    ("Run", "string", ".status.run.id", 1, "The present run"),
    ("Model", "string", ".spec.baseModel.id", 1, "The base model"),
    ("Queue", "string", ".status.queue.name", 1, "The queue that the run waits in or has its quota from"),
    ("Profile", "string", ".status.profile.name", 1, "The FineTuneProfile that the run began with"),
    ("Revision", "string", ".status.published.revision", 1, "The published commit"),
]

PROFILE_COLUMNS = [
    ("Default", "boolean", ".spec.default", 0, "Whether it holds for objects that name no profile"),
    ("Namespaces", "string", ".spec.namespaces", 0, "Who may use it; empty means all"),
    ("GPUs", "integer", ".spec.limits.maxGpus", 0, "Of a run, at most"),
    ("GPU-Hours", "string", ".spec.limits.maxGpuHours", 0, "Of a run, at most"),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', 0, "Whether the profile is valid"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Since the profile was created"),
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
    # Kstatus, and whatever waits with it, takes an object for done unless it says that nothing of it was observed yet;
    # and that no row is wrong is worth saying.
    for name in ("observedGeneration", "prepared"):
        status["properties"][name] = whole["properties"][name]
    parts = {"spec": finetune_spec_schema(), "status": status}
    what = "A FunctionCallFineTune makes one fine-tuned, judged and published function-calling model."
    return {
        **_object(KIND, what, parts),
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {NAME_LENGTH}",
                "message": f"metadata.name must have at most {NAME_LENGTH} characters: Jobs are named after it",
            }
        ],
    }


def profile_schema() -> Schema:
    """Return the schema of a whole FineTuneProfile."""
    what = "A FineTuneProfile is what a platform team gives to the FunctionCallFineTunes of teams, and allows them."
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

"""Builds the CustomResourceDefinition from the models."""

from typing import Any

from tunemill_api.constants import GROUP, KIND, PLURAL, SHORT_NAME, SINGULAR, VERSION
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import FineTuneStatus
from tunemill_api.structural import Schema, structural_schema

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
    ("Revision", "string", ".status.published.revision", 1, "The published commit"),
]


def custom_resource_definition() -> dict[str, Any]:
    """Return the CRD of FunctionCallFineTune, ready to be written as YAML."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "priority": priority, "description": description}
            for name, kind, path, priority, description in COLUMNS
        ],
        "selectableFields": [{"jsonPath": ".spec.baseModel.id"}],
        "schema": {"openAPIV3Schema": object_schema()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["tunemill"],
            },
            "versions": [version],
        },
    }


def object_schema() -> Schema:
    """Return the schema of a whole object."""
    return {
        "type": "object",
        "description": "A FunctionCallFineTune makes one fine-tuned, judged and published function-calling model.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"{KIND}."},
            "metadata": {"type": "object"},
            "spec": structural_schema(FineTuneSpec),
            "status": structural_schema(FineTuneStatus),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"self.metadata.name.size() <= {NAME_LENGTH}",
                "message": f"metadata.name must have at most {NAME_LENGTH} characters: Jobs are named after it",
            }
        ],
    }

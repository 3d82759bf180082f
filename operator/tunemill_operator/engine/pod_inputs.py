"""What the spec asks of a pod beyond its work, and the digest with which a live Job is compared.

The digest must outlive upgrades of the operator: a Job whose digest differs is replaced, and its training interrupted.
So it is made from a canonical form that is written down here, field by field, in the vocabulary of Kubernetes. Renaming
a field of the API does not change it, and neither does a new field that is at its default.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, Final

from tunemill_api.finetune import FineTuneSpec
from tunemill_api.pod_template import GRACE_SECONDS, SHARED_MEMORY, PodTemplate

from tunemill_operator.engine.stages import Work
from tunemill_operator.engine.volumes import (
    SECRETS_OF_WORK,
    Manifest,
    config_maps_of,
    dump,
    model_claim,
    secrets_of,
)

VERSION: Final = 1
"""Version of the canonical form. Raise it when the same inputs get another form; a digest of another version can then
be recognised, and says nothing about whether the pod is current."""


@dataclass(frozen=True)
class PodInputs:
    """What the spec asks of a pod beyond its work. A field is empty when the spec leaves it at its default.

    Checkpoint settings are no part of it: an edit of them takes effect with the next pod.
    """

    secrets: Manifest
    """Name and key of each Secret, by purpose."""
    config_maps: Manifest
    """Name and key of each ConfigMap, by purpose."""
    image: str
    gpus: Manifest
    """Number of GPUs by their resource name."""
    model_cache: str
    """The claim with the cache of base models."""
    queue: Manifest
    """Kueue's labels."""
    pod: Manifest
    """Settings from the stage's template, named as in a pod."""

    @property
    def digest(self) -> str:
        """Version and eight hexadecimal digits."""
        given = {item.name: value for item in fields(self) if (value := getattr(self, item.name)) not in (None, "", {})}
        text = json.dumps(given, sort_keys=True, separators=(",", ":"))
        return f"{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def pod_inputs(spec: FineTuneSpec, work: Work, queue: Manifest) -> PodInputs:
    """Return what the spec asks of the pod that does the work; `queue` holds the Job's labels for Kueue."""
    compute, trains = spec.compute, work.label == "train"
    secrets, config_maps = secrets_of(spec), config_maps_of(spec) if work.label == "prepare" else {}
    return PodInputs(
        secrets={name: _reference(ref) for name, ref in secrets.items() if name in SECRETS_OF_WORK[work.label]},
        config_maps={name: _reference(ref) for name, (ref, _) in config_maps.items()},
        image=compute.trainer_image,
        gpus={compute.gpu_resource: compute.gpus} if trains and compute.gpus else {},
        model_cache=model_claim(spec, work.label),
        queue=queue,
        pod=template_fields(spec.pod_templates.of(work.label)),
    )


def pod_fields(template: PodTemplate) -> Manifest:
    """Return the fields of a template that stand in a pod's spec as they are, by their names there."""
    return {
        "serviceAccountName": template.service_account_name,
        "resourceClaims": [dump(claim) for claim in template.resource_claims],
        "nodeSelector": template.node_selector,
        "tolerations": [dump(toleration) for toleration in template.tolerations],
        "affinity": dump(template.affinity),
        "topologySpreadConstraints": [dump(constraint) for constraint in template.topology_spread_constraints],
        "priorityClassName": template.priority_class_name,
        "runtimeClassName": template.runtime_class_name,
        "schedulerName": template.scheduler_name,
    }


def template_fields(template: PodTemplate) -> Manifest:
    """Return what a template sets, by the names that Kubernetes has for it, without what is at its default."""
    scratch = template.scratch
    grace, shared_memory = template.termination_grace_period_seconds, template.shared_memory
    found: Manifest = {
        "labels": template.labels,
        "annotations": template.annotations,
        "requests": template.resources.requests,
        "limits": template.resources.limits,
        **pod_fields(template),
        "env": [dump(variable) for variable in template.env],
        "volumes": [dump(volume) for volume in template.volumes],
        "volumeMounts": [dump(mount) for mount in template.volume_mounts],
        "terminationGracePeriodSeconds": grace if grace != GRACE_SECONDS else None,
        "scratch": [scratch.size, scratch.storage_class_name] if scratch else None,
        "sharedMemory": shared_memory if shared_memory != SHARED_MEMORY else None,
    }
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def _reference(ref: Any) -> list[str]:  # noqa: ANN401 - a SecretRef, SecretKeyRef or ConfigMapKeyRef
    return [ref.name, getattr(ref, "key", "")]

"""The pod settings in the spec, and their digest, with which an active Job is compared.

The digest must not change with an upgrade of the operator, because a Job with another digest is replaced and its
training interrupted. It is computed from a canonical form, which is defined here field by field with the names of
Kubernetes. A renamed field of the API does not change it, and neither does a new field with its default value.
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
"""Version of the canonical form. Increase it when the form of the same inputs changes. Digests of other versions are
recognized and not compared."""


@dataclass(frozen=True)
class PodInputs:
    """The pod settings in the spec. A field is empty if the spec has its default.

    Checkpoint settings are not included: an edit of them takes effect with the next pod.
    """

    secrets: Manifest
    """Name and key of each Secret, by purpose."""
    config_maps: Manifest
    """Name and key of each ConfigMap, by purpose."""
    image: str
    gpus: Manifest
    """Number of GPUs by resource name, per node."""
    nodes: int | None
    """Number of nodes."""
    model_cache: str
    """PersistentVolumeClaim of the model cache."""
    queue: Manifest
    """Kueue's labels."""
    keyless: bool | None
    """Whether the pod signs with the identity of its service account."""
    pod: Manifest
    """Settings of the stage's pod template, with the names of Kubernetes."""

    @property
    def digest(self) -> str:
        """Version and eight hexadecimal digits."""
        given = {item.name: value for item in fields(self) if (value := getattr(self, item.name)) not in (None, "", {})}
        text = json.dumps(given, sort_keys=True, separators=(",", ":"))
        return f"{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def pod_inputs(spec: FineTuneSpec, work: Work, queue: Manifest) -> PodInputs:
    """Return the pod settings for the work. `queue` contains the Job's labels for Kueue."""
    compute, trains = spec.compute, work.label == "train"
    secrets, config_maps = secrets_of(spec), config_maps_of(spec) if work.label == "prepare" else {}
    return PodInputs(
        secrets={name: _reference(ref) for name, ref in secrets.items() if name in SECRETS_OF_WORK[work.label]},
        config_maps={name: _reference(ref) for name, (ref, _) in config_maps.items()},
        image=compute.trainer_image,
        gpus={compute.gpu_resource: compute.gpus} if trains and compute.gpus else {},
        nodes=compute.nodes if trains and compute.nodes > 1 else None,
        model_cache=model_claim(spec, work.label),
        queue=queue,
        keyless=(work.label == "publish" and spec.publish.signs_keyless) or None,
        pod=template_fields(spec.pod_templates.of(work.label)),
    )


def pod_fields(template: PodTemplate) -> Manifest:
    """Return the fields of a template that are copied to the pod's spec, by their names there."""
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
    """Return the settings of a template, with the names of Kubernetes and without defaults."""
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

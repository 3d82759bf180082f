"""GPUs, trainer image and model cache of a run. The settings of the pods are in `pod_template`."""

from typing import Annotated, Final

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import Quantity, rule, rules

TRAINER_GPUS: Final = 1
"""Maximum number of GPUs that the trainer can use. More would be reserved and stay idle, so the API refuses them."""


class ModelCache(ApiModel):
    """A cache of base models that several runs share."""

    claim_name: Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """PersistentVolumeClaim in the object's namespace, mounted by the train and publish pods. Empty: each pod downloads
    the base model. Pods on several nodes need the access mode ReadWriteMany."""
    max_size: Quantity = "200Gi"
    """Maximum size of the cache, for example 200Gi. The least recently used revisions are removed first; a revision
    that a pod is reading stays."""


class Compute(ApiModel):
    """GPUs, trainer image and model cache."""

    gpus: Annotated[
        int,
        Field(
            ge=0,
            le=16,
            json_schema_extra=rules(
                rule(
                    f"self <= {TRAINER_GPUS}",
                    f"compute.gpus must be at most {TRAINER_GPUS}: the trainer cannot use more GPUs in one run",
                )
            ),
        ),
    ] = 1
    """Number of GPUs of the train pod, 0 or 1. 0 trains on the CPU, which is meant for small models and trials."""
    gpu_memory: Quantity | None = None
    """Memory of the GPU that the train pod gets, for example 24Gi or 80Gi. If prepare estimates that the run does not
    fit, it fails with CudaOutOfMemory before a GPU is requested. Unset: no check. The field does not choose a node."""
    gpu_resource: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """Resource name under which the device plugin offers GPUs."""
    model_cache: ModelCache = ModelCache()
    """Cache of base models that several runs share."""
    trainer_image: Annotated[str, Field(max_length=512)] = ""
    """Container image of all stages. Empty: the operator's default trainer image."""

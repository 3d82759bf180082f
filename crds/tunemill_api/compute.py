"""GPUs, nodes, trainer image and model cache of a run. The settings of the pods are in `pod_template`."""

from typing import Annotated, Final

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.scalars import Duration, Quantity

MAX_NODES: Final = 64
"""Maximum of spec.compute.nodes. A host name has at most 63 characters, so the index of a pod in it has two digits."""


class ModelCache(ApiModel):
    """A cache of base models that several runs share."""

    claim_name: Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """PersistentVolumeClaim in the object's namespace, mounted by the train and publish pods. Empty: each pod downloads
    the base model. Pods on several nodes need the access mode ReadWriteMany."""
    max_size: Quantity = "200Gi"
    """Maximum size of the cache, for example 200Gi. The least recently used revisions are removed first; a revision
    that a pod is reading stays."""


class Compute(ApiModel):
    """GPUs, nodes, trainer image and model cache."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """Number of GPUs per node, 0 to 16. 0 trains on the CPU, which is meant for small models and trials."""
    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    """Number of pods that train and evaluate together, 1 to 64, each with compute.gpus GPUs. The result does not depend
    on it. The scheduler may place several of them on one machine."""
    start_timeout: Duration = "20m"
    """With nodes above 1 and without spec.queue: maximum time in which some pods of a run hold their GPUs while others
    cannot start. After it, all of them are removed and tried again later. 0s: never. In a queue, Kueue reserves the
    quota of all pods at once."""
    gpu_memory: Quantity | None = None
    """Memory of the GPU that the train pod gets, for example 24Gi or 80Gi. If prepare estimates that the run does not
    fit, it fails with CudaOutOfMemory before a GPU is requested. Unset: no check. The field does not choose a node."""
    gpu_resource: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """Resource name under which the device plugin offers GPUs."""
    model_cache: ModelCache = ModelCache()
    """Cache of base models that several runs share."""
    trainer_image: Annotated[str, Field(max_length=512)] = ""
    """Container image of all stages. Empty: the operator's default trainer image."""

"""Where the pods run and what they get, with the names that a pod's spec has."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from tunemill_api.base import ApiModel

Quantity = Annotated[
    str,
    Field(
        max_length=64,
        pattern=r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
    # `cpu: 4` is a number in YAML, and the API server keeps it as one.
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
]
"""A Kubernetes quantity such as 500m or 16Gi."""


class Resources(ApiModel):
    """Requests and limits of a container, as Kubernetes has them."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the container is promised."""
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = {}
    """What the container may not exceed."""


class Toleration(ApiModel):
    """A toleration of a node's taint, as Kubernetes has it."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """The taint's key; absent with operator Exists means every taint."""
    operator: Annotated[str, Field(pattern="^(Exists|Equal)$")] | None = None
    """Exists or Equal (the default)."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value."""
    effect: Annotated[str, Field(pattern="^(NoSchedule|PreferNoSchedule|NoExecute)$")] | None = None
    """The taint's effect; absent means all."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated."""


Labels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
"""Labels, or a selector of labels."""


class ModelCache(ApiModel):
    """A cache of base models that runs share."""

    persistent_volume_claim: Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")] = ""
    """A claim in the object's namespace that the pods which load the base model mount; empty means that every pod
    downloads it. Pods on several nodes need the access mode ReadWriteMany."""
    max_gib: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """GiB that the cache may hold. The revisions that were used longest ago go first; what a pod is reading stays."""


class Compute(ApiModel):
    """Where the pods run and what they get."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs of the train pod. 0 trains on the CPU, which is for small models and trials."""
    gpu_resource: Annotated[str, Field(min_length=1, max_length=253)] = "nvidia.com/gpu"
    """The name under which the device plugin offers GPUs."""
    resources: Resources = Resources()
    """Of the pod that trains and evaluates."""
    prepare_resources: Resources = Resources()
    """Of the pods that prepare and publish; they need no GPU."""
    node_selector: Labels = {}
    """Labels of the nodes that may train."""
    tolerations: Annotated[
        list[Toleration], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = []
    """Taints of the nodes that may train."""
    affinity: Annotated[
        dict[str, Any] | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = None
    """The train pod's affinity, as in a pod's spec."""
    priority_class_name: Annotated[str, Field(max_length=253)] = ""
    """Of the train pod."""
    runtime_class_name: Annotated[str, Field(max_length=253)] = ""
    """Of the train pod, for example nvidia."""
    service_account_name: Annotated[str, Field(max_length=253)] = ""
    """Of all pods, for an identity with the cloud provider. No pod gets a token for the Kubernetes API."""
    pod_labels: Labels = {}
    """Put on all pods."""
    pod_annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] = {}
    """Put on all pods."""
    model_cache: ModelCache = ModelCache()
    """A cache of base models that runs share."""
    trainer_image: Annotated[str, Field(max_length=512)] = ""
    """An image of your own for all stages; empty means the operator's."""

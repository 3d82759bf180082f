"""What a platform team writes: the spec of a FineTuneProfile, and which fields of a FineTune it can preset.

A field that a profile can preset has no default in the CRD of FunctionCallFineTune. So the API server writes nothing
into it, and what stands there is what its user wrote, however it was applied (docs/adr/0009).
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.evaluation import Gate
from tunemill_api.finetune import FineTuneSpec, GpuHours
from tunemill_api.pod_template import TEMPLATE_FIELDS
from tunemill_api.scalars import Duration, Quantity, rule, rules
from tunemill_api.status import Condition

PRESETS = (
    "hub",
    "baseModel.tokenSecretRef",
    "dataset.credentialsSecretRef",
    "dataset.endpoint",
    "dataset.region",
    "evaluation.gates",
    "evaluation.onGateFailure",
    "publish.private",
    "publish.serving",
    "publish.tokenSecretRef",
    "workspace",
    "compute",
    "podTemplates",
    "queue",
    "retry",
    "maxRuntime",
    "stallTimeout",
    "maxGpuHours",
    "historyLimit",
)
"""The parts of a spec that a profile can preset: where things lie, what they cost, when they are good enough. What is
learnt from which rows, and where it goes, is the user's alone."""

Glob = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s\[\]]+$")]
"""A name in which * stands for any characters and ? for one."""

# Atomic: of an empty set, server-side apply would leave the empty list behind when the field is taken out again.
Globs = Annotated[list[Glob], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "atomic"})]
"""Names that are allowed; an empty list allows none."""


DEFAULT_TEMPLATE_FIELDS = (
    "resources",
    "env",
    "terminationGracePeriodSeconds",
    "sharedMemory",
    "topologySpreadConstraints",
)
"""Fields of spec.podTemplates that users may set where a profile has limits and no list of fields: they stay within the
pod, and resources, time and variables have limits of their own."""


class Limits(ApiModel):
    """What no run of the profile may exceed, whoever asks for it.

    A profile that sets any limit also refuses what could leave the namespace or change the code that runs, unless a
    limit or the defaults name it.
    """

    max_gpus: Annotated[int, Field(ge=0, le=16)] | None = None
    """The highest spec.compute.gpus, and the value where a spec sets none. Other devices (extended resources and
    resourceClaims in spec.podTemplates) are allowed only as defaults.podTemplates gives them."""
    max_gpu_hours: GpuHours = ""
    """The highest spec.maxGpuHours, and what holds where it is empty."""
    base_models: Globs | None = None
    """The base models, as spec.baseModel.id has them, for example google/*. They are taken from the Hub of
    defaults.hub.endpoint, or from huggingface.co, only."""
    hub_organizations: Globs | None = None
    """The owners of spec.publish.repository, on the same Hub only."""
    trainer_images: Globs | None = None
    """The images in spec.compute.trainerImage, for example registry.example.com/ml/*; the operator's own is always
    allowed, and an empty list allows no other. If unset while other limits are set: only the image of the defaults.
    A custom image decides what runs, so limits on names, gates and visibility cannot be enforced for it."""
    gpu_resources: Globs | None = None
    """Allowed spec.compute.gpuResource. If unset while other limits are set: the one in the defaults, or
    nvidia.com/gpu."""
    service_accounts: Globs | None = None
    """Allowed serviceAccountName of every stage in spec.podTemplates; naming none is always allowed."""
    secrets: Globs | None = None
    """Allowed Secrets in the spec: credentials, tokens, and those in env and volumes of spec.podTemplates. What the
    defaults name, and the default hf-write, are always allowed. If unset: every Secret of the namespace."""
    claims: Globs | None = None
    """Allowed PersistentVolumeClaims: spec.compute.modelCache.claimName and volumes of spec.podTemplates. If unset
    while other limits are set: for the model cache, only the claim in the defaults."""
    endpoints: Globs | None = None
    """Hosts, or host:port, that spec.hub.endpoint, spec.dataset.endpoint and spec.workspace.endpoint may name, for
    example *.acme.com. If unset while other limits are set: only the endpoint in the defaults, or the public endpoint
    if the defaults have none."""
    priority_classes: Globs | None = None
    """Allowed priorityClassName of every stage in spec.podTemplates, and allowed spec.queue.priorityClass; naming none
    is always allowed. If unset while other limits are set: only the one in the defaults."""
    runtime_classes: Globs | None = None
    """Allowed runtimeClassName of every stage in spec.podTemplates; naming none is always allowed."""
    pod_template_fields: (
        Annotated[
            list[Annotated[str, Field(json_schema_extra={"enum": list(TEMPLATE_FIELDS)})]],
            Field(max_length=len(TEMPLATE_FIELDS), json_schema_extra={"x-kubernetes-list-type": "atomic"}),
        ]
        | None
    ) = None
    """Fields of spec.podTemplates that users may set, for example [resources, env]. An empty list allows none. What
    defaults.podTemplates sets is always allowed. If unset while other limits are set: resources, env,
    terminationGracePeriodSeconds, sharedMemory, topologySpreadConstraints, and the fields that have their own list in
    these limits. volumes and volumeMounts let users replace the trainer's files."""
    max_resources: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Highest request and limit of a pod by resource, for example {cpu: "16", memory: 64Gi, ephemeral-storage: 200Gi}.
    It is also the limit of a container that sets none for the resource. ephemeral-storage also bounds the size of
    scratch and of ephemeral claims in spec.podTemplates."""
    max_runtime: Duration | None = None
    """The highest spec.maxRuntime, and the value where a spec sets none that is lower."""
    max_retries: Annotated[int, Field(ge=0, le=20)] | None = None
    """The highest spec.retry.limit, and the value where a spec sets none that is lower."""
    gates: Annotated[list[Gate], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})] | None = (
        None
    )
    """Gates that every run must pass, in addition to spec.evaluation.gates. Users cannot remove them."""
    private_only: bool = False
    """Whether spec.publish.private must be true: repositories that a run creates are private. It does not change the
    visibility of a repository that exists."""


class FineTuneProfileSpec(ApiModel):
    """What a platform team gives to FunctionCallFineTunes, and what it allows them."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.limits.maxGpus) || !has(self.defaults.compute) || !has(self.defaults.compute.gpus) || "
                "self.defaults.compute.gpus <= self.limits.maxGpus",
                "defaults.compute.gpus must be at most limits.maxGpus",
            ),
            rule(
                "!has(self.limits.maxGpuHours) || self.limits.maxGpuHours == '' || !has(self.defaults.maxGpuHours) || "
                "self.defaults.maxGpuHours == '' || "
                "double(self.defaults.maxGpuHours) <= double(self.limits.maxGpuHours)",
                "defaults.maxGpuHours must be at most limits.maxGpuHours",
            ),
        )
    }

    default: bool = False
    """Whether it holds for objects whose spec.profile is empty. Of several default profiles that a namespace may use,
    one that lists namespaces comes before one that does not; two of the same kind stall the objects, by name."""
    namespaces: Globs | None = None
    """The namespaces that may use it, for example team-*; absent allows all."""
    defaults: dict[str, Any] = {}
    """Fields of a FunctionCallFineTune's spec, as they stand there. Each holds where the user's spec does not have that
    field; lists, maps and references are one field each."""
    limits: Limits = Limits()
    """What no run of the profile may exceed, whoever asks for it. Any limit also refuses tolerations, node selectors,
    affinity, schedulers, labels, annotations, volumes, images, endpoints and claims that no limit and no default
    names."""


class FineTuneProfileStatus(ApiModel):
    """Whether the operator can use the profile."""

    observed_generation: int = 0
    """The generation of the spec that the conditions are about."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """Ready: True when the profile is valid. False when it is not; the message names the field."""


def _fields(preset: str) -> Iterator[str]:
    """Yield the single fields of a part of the spec, as dotted paths."""
    model: type[ApiModel] = FineTuneSpec
    *parents, last = preset.split(".")
    for name in parents:
        model = _field_type(model, name)
    yield from _leaves(_field_type(model, last), preset)


def _leaves(part: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - the type of a field
    """Yield the path itself, or what is below a model of which no field is required: a reference is one field."""
    if not (isinstance(part, type) and issubclass(part, ApiModel)) or _requires(part):
        yield path
        return
    for field in part.model_fields.values():
        yield from _leaves(field.annotation, f"{path}.{field.alias}")


def _requires(model: type[ApiModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _field_type(model: type[ApiModel], name: str) -> Any:  # noqa: ANN401 - the type of a field
    return next(field.annotation for field in model.model_fields.values() if field.alias == name)


PRESET_FIELDS = tuple(field for preset in PRESETS for field in _fields(preset))
"""Every single field of PRESETS, as a dotted path."""

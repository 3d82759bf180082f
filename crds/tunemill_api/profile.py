"""The spec of a FineTuneProfile, and the fields of a FunctionCallFineTune that a profile can preset.

Fields that a profile can preset have no default in the CRD of FunctionCallFineTune. The API server therefore adds no
value to them, and a value in such a field was written by the user (docs/adr/0009).
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from tunemill_api.base import ApiModel
from tunemill_api.compute import MAX_NODES
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
    "tracking",
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
"""The parts of a spec that a profile can preset: endpoints, credentials, resources, limits and gates. Users alone
decide about the data, the training and the repository."""

Glob = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\s\[\]]+$")]
"""A name in which * stands for any characters and ? for one."""

# Atomic: of an empty set, server-side apply would leave the empty list behind when the field is taken out again.
Globs = Annotated[list[Glob], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "atomic"})]
"""Allowed names. An empty list allows none."""


DEFAULT_TEMPLATE_FIELDS = (
    "resources",
    "env",
    "terminationGracePeriodSeconds",
    "sharedMemory",
    "topologySpreadConstraints",
)
"""Fields of spec.podTemplates that users may set if the profile has limits but no podTemplateFields. Their effect stays
within the pod, and resources, time and variables have separate limits."""


class Limits(ApiModel):
    """Limits for all runs of the profile.

    A profile with any limit also refuses fields that could reach outside the namespace or change the code that runs,
    unless a limit or the defaults allow their values.
    """

    max_gpus: Annotated[int, Field(ge=0, le=16)] | None = None
    """Maximum spec.compute.gpus, which is per node, and its value if the spec does not set it. Other devices (extended
    resources and resourceClaims in spec.podTemplates) are allowed only as defaults.podTemplates sets them."""
    max_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """Maximum spec.compute.nodes. If unset while other limits are set: the number in the defaults, or 1."""
    max_gpu_hours: GpuHours = ""
    """Maximum spec.maxGpuHours, over all nodes, and its value if the spec does not set it."""
    base_models: Globs | None = None
    """Allowed spec.baseModel.id and spec.baseModel.adapter.id, for example google/*. They are downloaded only from the
    Hub of defaults.hub.endpoint, or from huggingface.co if that is not set."""
    hub_organizations: Globs | None = None
    """Allowed owners of spec.publish.repository, on the same Hub only."""
    trainer_images: Globs | None = None
    """Allowed spec.compute.trainerImage, for example registry.example.com/ml/*. The operator's own image is always
    allowed; an empty list allows no other. If unset while other limits are set: only the image in the defaults. A
    custom image decides what runs, so limits on names, gates and visibility cannot be enforced for it."""
    gpu_resources: Globs | None = None
    """Allowed spec.compute.gpuResource. If unset while other limits are set: the one in the defaults, or
    nvidia.com/gpu."""
    service_accounts: Globs | None = None
    """Allowed serviceAccountName of every stage in spec.podTemplates. An empty name is always allowed."""
    secrets: Globs | None = None
    """Allowed Secrets in the spec: credentials, tokens, and those in env and volumes of spec.podTemplates. Secrets in
    the defaults, and the default hf-write, are always allowed. If unset: every Secret of the namespace."""
    claims: Globs | None = None
    """Allowed PersistentVolumeClaims: spec.compute.modelCache.claimName and volumes of spec.podTemplates. If unset
    while other limits are set: for the model cache, only the claim in the defaults."""
    endpoints: Globs | None = None
    """Hosts, or host:port, that spec.hub.endpoint, spec.dataset.endpoint, spec.workspace.endpoint,
    spec.publish.oci.registry, spec.tracking.mlflow.uri and spec.tracking.wandb.endpoint (api.wandb.ai if it is empty)
    may name, for example *.acme.com. If unset while other limits are set: only the endpoint in the defaults, or the
    public Hub and S3 if the defaults have none. There is no public registry, and no public tracker."""
    priority_classes: Globs | None = None
    """Allowed priorityClassName of every stage in spec.podTemplates, and allowed spec.queue.priorityClass. An empty
    name is always allowed. If unset while other limits are set: only the one in the defaults."""
    runtime_classes: Globs | None = None
    """Allowed runtimeClassName of every stage in spec.podTemplates. An empty name is always allowed."""
    pod_template_fields: (
        Annotated[
            list[Annotated[str, Field(json_schema_extra={"enum": list(TEMPLATE_FIELDS)})]],
            Field(max_length=len(TEMPLATE_FIELDS), json_schema_extra={"x-kubernetes-list-type": "atomic"}),
        ]
        | None
    ) = None
    """Fields of spec.podTemplates that users may set, for example [resources, env]. An empty list allows none. Values
    in defaults.podTemplates are always allowed. If unset while other limits are set: resources, env,
    terminationGracePeriodSeconds, sharedMemory, topologySpreadConstraints, and the fields that have a separate list in
    these limits. volumes and volumeMounts let users replace the trainer's files."""
    max_resources: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Maximum request and limit of a pod by resource, for example {cpu: "16", memory: 64Gi, ephemeral-storage: 200Gi}.
    It is also the limit of a container that sets none for the resource. The limit for ephemeral-storage also applies to
    the size of scratch and of ephemeral claims in spec.podTemplates."""
    max_runtime: Duration | None = None
    """Maximum spec.maxRuntime, and its value if the spec does not set a lower one."""
    max_retries: Annotated[int, Field(ge=0, le=20)] | None = None
    """Maximum spec.retry.limit, and its value if the spec does not set a lower one."""
    gates: (
        Annotated[
            list[Gate],
            Field(
                max_length=8,
                json_schema_extra={
                    "x-kubernetes-list-type": "atomic",
                    **rules(
                        rule("self.all(gate, has(gate.metric))", "a gate of a profile needs a metric: suites differ")
                    ),
                },
            ),
        ]
        | None
    ) = None
    """Gates that every run must pass, in addition to spec.evaluation.gates. Users cannot remove them."""
    private_only: bool = False
    """Whether spec.publish.private must be true, so that new repositories are private. It does not change the
    visibility of existing repositories."""


class FineTuneProfileSpec(ApiModel):
    """Defaults and limits that a platform team sets for FunctionCallFineTunes."""

    model_config = {
        "json_schema_extra": rules(
            rule(
                "!has(self.limits.maxGpus) || !has(self.defaults.compute) || !has(self.defaults.compute.gpus) || "
                "self.defaults.compute.gpus <= self.limits.maxGpus",
                "defaults.compute.gpus must be at most limits.maxGpus",
            ),
            rule(
                "!has(self.limits.maxNodes) || !has(self.defaults.compute) || !has(self.defaults.compute.nodes) || "
                "self.defaults.compute.nodes <= self.limits.maxNodes",
                "defaults.compute.nodes must be at most limits.maxNodes",
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
    """Whether the profile applies to objects with an empty spec.profile. If a namespace may use several default
    profiles, one that lists namespaces takes precedence over one that does not. Two default profiles of the same kind
    stall the objects, with a message that names both."""
    namespaces: Globs | None = None
    """Namespaces that may use the profile, for example team-*. Absent: all."""
    defaults: dict[str, Any] = {}
    """Fields of a FunctionCallFineTune's spec, with the same names. Each applies if the user's spec does not set that
    field. Lists, maps and references are one field each."""
    limits: Limits = Limits()
    """Limits for all runs of the profile. A profile with any limit also refuses tolerations, node selectors, affinity,
    schedulers, labels, annotations, volumes, images, endpoints and claims that neither a limit nor the defaults
    allow."""


class FineTuneProfileStatus(ApiModel):
    """Whether the profile is valid."""

    observed_generation: int = 0
    """Generation of the spec that the conditions refer to."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """Ready is True if the profile is valid. If it is False, the message names the invalid field."""


def _fields(preset: str) -> Iterator[str]:
    """Yield the fields of a part of the spec as dotted paths."""
    model: type[ApiModel] = FineTuneSpec
    *parents, last = preset.split(".")
    for name in parents:
        model = _field_type(model, name)
    yield from _leaves(_field_type(model, last), preset)


def _leaves(part: Any, path: str) -> Iterator[str]:  # noqa: ANN401 - the type of a field
    """Yield the paths of the fields below `path`. A model with a required field, such as a reference, is one field."""
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
"""Every field below PRESETS, as a dotted path."""

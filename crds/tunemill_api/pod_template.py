"""Settings of the stage pods, one template per stage, with the names that the fields have in a pod's spec.

The templates are typed in full: the API server refuses a misspelt field at `kubectl apply`. They hold what a platform
or a team has to choose, and nothing that would weaken the pod's security context (docs/adr/0012).
"""

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from tunemill_api import constants
from tunemill_api.affinity import Affinity, LabelSelector
from tunemill_api.base import ApiModel
from tunemill_api.scalars import DataKey, DnsName, Quantity, rule, rules

_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
RESERVED_ENV: Final = ("HOME", "USER", "HF_HOME", "TRACEPARENT", "NVIDIA_VISIBLE_DEVICES", *_PROXIES)
"""Variables that the operator sets itself, and the one that would give a pod the GPUs of others."""
RESERVED_ENV_PREFIXES: Final = ("TUNEMILL_", "KUBEFLOW_", "OTEL_EXPORTER_OTLP_")
RESERVED_LABELS: Final = (constants.LABEL_QUEUE, constants.LABEL_PRIORITY, "job-name", "controller-uid")
RESERVED_LABEL_PREFIXES: Final = (f"{constants.GROUP}/", "batch.kubernetes.io/")
RESERVED_PATHS: Final = (constants.STAGE_DIRECTORY, "/tmp", "/dev", "/proc", "/sys")  # noqa: S108 - a pod's own
"""Directories that a user's volume may neither be mounted in nor hide."""

GRACE_SECONDS: Final = 60
"""Default termination grace period: enough to write and upload a checkpoint after SIGTERM."""
SHARED_MEMORY: Final = "1Gi"
"""Default size of /dev/shm: data loaders of PyTorch need more than the runtime's 64 MiB."""

DEFAULT_REQUESTS: Final = {
    "prepare": {"cpu": "500m", "memory": "2Gi"},
    "train": {"cpu": "1", "memory": "4Gi"},
    "publish": {"cpu": "500m", "memory": "2Gi"},
}
"""Requests of a stage for a resource for which its template has neither a request nor a limit. So no pod is BestEffort,
and a ResourceQuota on requests admits every pod."""


def reserved_env(name: str) -> bool:
    """Return whether only the operator may set this variable."""
    return name in RESERVED_ENV or name.startswith(RESERVED_ENV_PREFIXES)


def reserved_label(name: str) -> bool:
    """Return whether only the operator may set this label of a pod."""
    return name in RESERVED_LABELS or name.startswith(RESERVED_LABEL_PREFIXES)


def _all_of(conditions: Iterable[str]) -> str:
    return " && ".join(conditions)


def _cel_list(names: Iterable[str]) -> str:
    return f"[{', '.join(repr(name) for name in names)}]"


def _own_labels(labels: dict[str, str]) -> dict[str, str]:
    if found := sorted(filter(reserved_label, labels)):
        raise ValueError(f"{found[0]} is set by the operator or by Kubernetes: remove it")
    return labels


def _own_annotations(annotations: dict[str, str]) -> dict[str, str]:
    if found := sorted(name for name in annotations if name.startswith(f"{constants.GROUP}/")):
        raise ValueError(f"{found[0]} is set by the operator: remove it")
    return annotations


def _own_variable(name: str) -> str:
    if reserved_env(name):
        raise ValueError(f"{name} is set by the operator: remove it")
    return name


def _own_path(path: str) -> str:
    if "/." in path and {".", ".."} & set(path.split("/")):
        raise ValueError(f"{path} must not contain . or ..")
    for reserved in RESERVED_PATHS:
        if f"{path}/".startswith(f"{reserved}/") or f"{reserved}/".startswith(f"{path}/"):
            raise ValueError(f"{path} would hide {reserved}, which the stage uses itself: choose another path")
    return path


def _different_names(items: list[Any]) -> list[Any]:
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the name {twice[0]} occurs more than once")
    return items


_NO_RESERVED_LABELS = rule(
    "self.all(name, "
    + _all_of(
        [
            f"!(name in {_cel_list(RESERVED_LABELS)})",
            *(f"!name.startsWith('{prefix}')" for prefix in RESERVED_LABEL_PREFIXES),
        ]
    )
    + ")",
    "labels of tunemill.dev, of batch.kubernetes.io and of Kueue's queues are set by the operator: remove them",
)
_NO_RESERVED_ANNOTATIONS = rule(
    f"self.all(name, !name.startsWith('{constants.GROUP}/'))",
    "annotations of tunemill.dev are set by the operator: remove them",
)
_NO_RESERVED_ENV = rule(
    _all_of(
        [
            f"!(self in {_cel_list(RESERVED_ENV)})",
            *(f"!self.startsWith('{prefix}')" for prefix in RESERVED_ENV_PREFIXES),
        ]
    ),
    f"the operator sets this variable itself; reserved are {', '.join(RESERVED_ENV)}, and all that begin with "
    f"{', '.join(RESERVED_ENV_PREFIXES)}",
)
_SEPARATE = "!(self + '/').startsWith(r + '/') && !(r + '/').startsWith(self + '/')"
_NO_RESERVED_PATH = rule(
    _all_of(
        [
            "!(self + '/').contains('/./')",
            "!(self + '/').contains('/../')",
            f"{_cel_list(RESERVED_PATHS)}.all(r, {_SEPARATE})",
        ]
    ),
    f"mountPath must not contain . or .., and must neither be in nor hide {', '.join(RESERVED_PATHS)}, which the stage "
    "uses itself",
)
_DIFFERENT_NAMES = rule(
    "self.all(one, self.exists_one(other, other.name == one.name))", "each name may occur only once"
)


def _exactly_one(fields: Iterable[str], message: str) -> dict[str, str]:
    given = ", ".join(f"has(self.{field})" for field in fields)
    return rule(f"[{given}].filter(given, given).size() == 1", message)


def _atomic(*items: dict[str, str]) -> dict[str, Any]:
    """Return the extension of a list that is one field: server-side apply would leave an empty one behind."""
    return {"x-kubernetes-list-type": "atomic", **(rules(*items) if items else {})}


Labels = Annotated[
    dict[str, Annotated[str, Field(max_length=63)]],
    Field(max_length=64, json_schema_extra=rules(_NO_RESERVED_LABELS)),
    AfterValidator(_own_labels),
]
Annotations = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(max_length=64, json_schema_extra=rules(_NO_RESERVED_ANNOTATIONS)),
    AfterValidator(_own_annotations),
]
NodeLabels = Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=64)]
Quantities = Annotated[dict[str, Quantity], Field(max_length=16)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$")]
"""The name of a Kubernetes object; empty means none."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=58, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
"""A name within a pod. Shorter than Kubernetes allows: in the pod it gets a prefix."""


class Resources(ApiModel):
    """Requests and limits of the stage's container."""

    requests: Quantities = {}
    """Requested resources. Without a request and a limit: cpu 500m and memory 2Gi for prepare and publish, cpu 1 and
    memory 4Gi for train."""
    limits: Quantities = {}
    """Resource limits. GPUs are set by spec.compute.gpus."""


class ResourceClaim(ApiModel):
    """A claim of dynamic resource allocation (DRA). The stage's container gets it automatically."""

    model_config = {
        "json_schema_extra": rules(
            _exactly_one(
                ("resourceClaimName", "resourceClaimTemplateName"),
                "set exactly one of resourceClaimName and resourceClaimTemplateName",
            )
        )
    }

    name: Name
    """Name of the claim within the pod."""
    resource_claim_name: DnsName | None = None
    """ResourceClaim in the object's namespace."""
    resource_claim_template_name: DnsName | None = None
    """ResourceClaimTemplate in the object's namespace, from which each pod gets a claim of its own."""


class Toleration(ApiModel):
    """A toleration of a node's taint."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """The taint's key; absent with operator Exists means every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists or Equal; absent means Equal."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; absent means all."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated."""


class TopologySpreadConstraint(ApiModel):
    """How pods are spread over zones, nodes or other domains."""

    max_skew: Annotated[int, Field(ge=1, le=1000)]
    """Largest allowed difference between the numbers of pods in two domains."""
    topology_key: Annotated[str, Field(min_length=1, max_length=316)]
    """Node label whose values are the domains."""
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    """What to do with a pod that violates the constraint."""
    label_selector: LabelSelector | None = None
    """The pods that are counted."""
    match_label_keys: Annotated[list[Annotated[str, Field(max_length=316)]], Field(max_length=16)] | None = None
    """Labels of the pod whose values select the pods that are counted."""
    min_domains: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Minimum number of eligible domains."""
    node_affinity_policy: Literal["Honor", "Ignore"] | None = None
    """Whether nodeAffinity and nodeSelector limit the counted nodes; absent means Honor."""
    node_taints_policy: Literal["Honor", "Ignore"] | None = None
    """Whether taints limit the counted nodes; absent means Ignore."""


class KeySelector(ApiModel):
    """A key of a Secret or ConfigMap in the object's namespace."""

    name: DnsName
    """Name of the Secret or ConfigMap."""
    key: DataKey
    """Key in its data."""
    optional: bool | None = None
    """Whether the object or the key may be missing."""


class EnvVarSource(ApiModel):
    """Where the value of a variable comes from."""

    model_config = {
        "json_schema_extra": rules(
            _exactly_one(
                ("secretKeyRef", "configMapKeyRef"), "valueFrom: set exactly one of secretKeyRef and configMapKeyRef"
            )
        )
    }

    secret_key_ref: KeySelector | None = None
    """A key of a Secret."""
    config_map_key_ref: KeySelector | None = None
    """A key of a ConfigMap."""


class EnvVar(ApiModel):
    """An environment variable of the stage's container."""

    model_config = {
        "json_schema_extra": rules(
            rule("!has(self.value) || !has(self.valueFrom)", "env: set value or valueFrom, not both")
        )
    }

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$",
            json_schema_extra=rules(_NO_RESERVED_ENV),
        ),
        AfterValidator(_own_variable),
    ]
    """Name of the variable. Variables that the operator sets are refused."""
    value: Annotated[str, Field(max_length=4096)] | None = None
    """Its value. For secrets use valueFrom."""
    value_from: EnvVarSource | None = None
    """A key of a Secret or ConfigMap."""


class KeyToPath(ApiModel):
    """A key that becomes a file."""

    key: DataKey
    """Key in the data."""
    path: Annotated[str, Field(min_length=1, max_length=256)]
    """Relative path of the file."""
    mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits of the file."""


Items = Annotated[list[KeyToPath], Field(max_length=64, json_schema_extra=_atomic())]


class ConfigMapVolume(ApiModel):
    """A volume with the data of a ConfigMap."""

    name: DnsName
    """ConfigMap in the object's namespace."""
    items: Items | None = None
    """Keys that become files; absent means all."""
    default_mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits of the files."""
    optional: bool | None = None
    """Whether the ConfigMap or its keys may be missing."""


class SecretVolume(ApiModel):
    """A volume with the data of a Secret."""

    secret_name: DnsName
    """Secret in the object's namespace."""
    items: Items | None = None
    """Keys that become files; absent means all."""
    default_mode: Annotated[int, Field(ge=0, le=511)] | None = None
    """Permission bits of the files."""
    optional: bool | None = None
    """Whether the Secret or its keys may be missing."""


class EmptyDirVolume(ApiModel):
    """An empty directory that is deleted with the pod."""

    medium: Literal["Memory"] | None = None
    """Memory for a tmpfs; absent means the node's disk."""
    size_limit: Quantity | None = None
    """Maximum size; the pod is evicted when it uses more."""


class ClaimVolume(ApiModel):
    """A volume of a PersistentVolumeClaim."""

    claim_name: DnsName
    """PersistentVolumeClaim in the object's namespace."""
    read_only: bool | None = None
    """Whether it is mounted read-only."""


class StorageRequest(ApiModel):
    """Requested storage."""

    storage: Quantity
    """Size of the volume, for example 100Gi."""


class VolumeResources(ApiModel):
    """Resources of a claim."""

    requests: StorageRequest
    """Requested resources."""


class ClaimSpec(ApiModel):
    """The spec of an ephemeral claim."""

    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadOnlyMany", "ReadWriteMany"]],
        Field(min_length=1, max_length=4, json_schema_extra=_atomic()),
    ]
    """Access modes of the volume."""
    resources: VolumeResources
    """Requested storage."""
    storage_class_name: DnsName | None = None
    """StorageClass; absent means the cluster's default."""
    volume_mode: Literal["Filesystem"] | None = None
    """Filesystem, which is the default."""


class ClaimTemplate(ApiModel):
    """A template of the claim."""

    spec: ClaimSpec
    """The claim's spec."""


class EphemeralVolume(ApiModel):
    """A claim that is created and deleted with the pod."""

    volume_claim_template: ClaimTemplate
    """Template of the claim."""


class Volume(ApiModel):
    """A volume of the pod. Kinds that reach the node, such as hostPath, do not exist here."""

    model_config = {
        "json_schema_extra": rules(
            _exactly_one(
                ("configMap", "secret", "emptyDir", "persistentVolumeClaim", "ephemeral"),
                "volumes: set exactly one of configMap, secret, emptyDir, persistentVolumeClaim and ephemeral",
            )
        )
    }

    name: Name
    """Name of the volume, to which volumeMounts refer."""
    config_map: ConfigMapVolume | None = None
    """Data of a ConfigMap."""
    secret: SecretVolume | None = None
    """Data of a Secret."""
    empty_dir: EmptyDirVolume | None = None
    """An empty directory."""
    persistent_volume_claim: ClaimVolume | None = None
    """An existing PersistentVolumeClaim."""
    ephemeral: EphemeralVolume | None = None
    """A claim that lives as long as the pod."""


class VolumeMount(ApiModel):
    """Where a volume is mounted in the stage's container."""

    name: Name
    """Name of one of the template's volumes."""
    mount_path: Annotated[
        str,
        Field(max_length=512, pattern=r"^(/[^/:]+)+$", json_schema_extra=rules(_NO_RESERVED_PATH)),
        AfterValidator(_own_path),
    ]
    """Absolute path in the container, outside the stage's own directories."""
    sub_path: Annotated[str, Field(max_length=256, pattern=r"^[^/.:][^/:]*(/[^/.:][^/:]*)*$")] | None = None
    """Relative path within the volume; no part of it may begin with a dot."""
    read_only: bool | None = None
    """Whether the container may only read it."""


class Scratch(ApiModel):
    """Volume for the stage's working files."""

    size: Quantity
    """Size of the volume, for example 100Gi."""
    storage_class_name: ObjectName = ""
    """StorageClass of an ephemeral claim that is created and deleted with the pod. Empty: an emptyDir on the node's
    disk; the pod is evicted when it uses more than the size."""


class PodTemplate(ApiModel):
    """Settings of the pods of one stage."""

    labels: Labels = {}
    """Labels of the pod."""
    annotations: Annotations = {}
    """Annotations of the pod, for example karpenter.sh/do-not-disrupt."""
    resources: Resources = Resources()
    """Requests and limits of the stage's container."""
    resource_claims: Annotated[
        list[ResourceClaim],
        Field(max_length=8, json_schema_extra=_atomic(_DIFFERENT_NAMES)),
        AfterValidator(_different_names),
    ] = []
    """Claims of dynamic resource allocation (DRA), given to the stage's container."""
    node_selector: NodeLabels = {}
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32, json_schema_extra=_atomic())] = []
    """Tolerated taints."""
    affinity: Affinity | None = None
    """Node affinity, pod affinity and pod anti-affinity."""
    topology_spread_constraints: Annotated[
        list[TopologySpreadConstraint], Field(max_length=8, json_schema_extra=_atomic())
    ] = []
    """How pods are spread over zones and nodes."""
    priority_class_name: ObjectName = ""
    """PriorityClass of the pod."""
    runtime_class_name: ObjectName = ""
    """RuntimeClass of the pod, for example nvidia."""
    scheduler_name: ObjectName = ""
    """Scheduler of the pod; empty means the cluster's default."""
    service_account_name: ObjectName = ""
    """ServiceAccount of the pod, for an identity with the cloud provider; empty means default. The pod gets no token
    for the Kubernetes API."""
    env: Annotated[
        list[EnvVar],
        Field(max_length=32, json_schema_extra=_atomic(_DIFFERENT_NAMES)),
        AfterValidator(_different_names),
    ] = []
    """Environment variables of the stage's container."""
    volumes: Annotated[
        list[Volume],
        Field(max_length=16, json_schema_extra=_atomic(_DIFFERENT_NAMES)),
        AfterValidator(_different_names),
    ] = []
    """Additional volumes: ConfigMaps, Secrets, emptyDirs and claims."""
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=32, json_schema_extra=_atomic())] = []
    """Where the additional volumes are mounted."""
    termination_grace_period_seconds: Annotated[int, Field(ge=2, le=3600)] = GRACE_SECONDS
    """Seconds from SIGTERM to SIGKILL. The train stage saves a checkpoint in this time, less 10 seconds."""
    scratch: Scratch | None = None
    """Volume for the stage's working files; absent means an emptyDir without a size limit."""
    shared_memory: Quantity = SHARED_MEMORY
    """Size of /dev/shm. It counts against the memory limit as far as it is used."""


class PodTemplates(ApiModel):
    """Settings of the pods, per stage."""

    prepare: PodTemplate = PodTemplate()
    """Pod template of prepare, with the fields of podTemplates.train. Prepare validates data, model and tokens
    before any GPU is requested."""
    train: PodTemplate = PodTemplate()
    """Pod template of train, which also evaluates: the only pod with GPUs."""
    publish: PodTemplate = PodTemplate()
    """Pod template of publish, with the fields of podTemplates.train. It is the only pod whose identity needs to write
    to the Hub."""

    def of(self, label: str) -> PodTemplate:
        """Return the template of the pod with this stage label."""
        template: PodTemplate = getattr(self, label)
        return template


TEMPLATE_FIELDS: Final = tuple(str(field.alias) for field in PodTemplate.model_fields.values())
"""The fields of a template, as users write them."""


def is_extended_resource(name: str) -> bool:
    """Return whether a resource is what Kubernetes calls an extended resource, such as nvidia.com/gpu."""
    return "/" in name and "kubernetes.io/" not in name

"""Every field of a spec is bounded by a limit of a profile, or declared harmless with a reason.

A new field has to be in one of the two tables: `BOUNDED` with a value that the limits refuse, or
`HARMLESS` with the reason why no limit needs to hold for it.
"""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml
from property.builders import a_profile, a_spec, merged, parsed
from pydantic import BaseModel
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_operator.engine.profile_limits import check
from tunemill_operator.engine.profiles import Profile, RefusedError, applied, given, profile_of

SAMPLE = Path(__file__).parents[3] / "crds" / "samples" / "profile.yaml"
STAGES = ("prepare", "train", "publish")
STRICT: dict[str, Any] = {
    "maxGpus": 0,
    "maxGpuHours": "1",
    "baseModels": ["google/*"],
    "hubOrganizations": ["acme"],
    "secrets": ["s3"],
    "maxResources": {"cpu": "4", "memory": "8Gi", "ephemeral-storage": "50Gi"},
    "maxRuntime": "1h",
    "maxRetries": 1,
    "gates": [{"metric": "exact_match", "min": "0.8"}],
    "privateOnly": True,
}
"""Limits that are strict where there is something to choose; what escapes is refused without being named."""

SECRET, CLAIM = {"secretName": "postgres"}, {"claimName": "postgres"}
SCRATCH = {"size": "100Gi"}
REQUEST = {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Gi"}}}}
TERMS = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]}
TEMPLATE: dict[str, tuple[str, Any]] = {
    "labels": ("podTemplateFields", {"app": "payments"}),
    "annotations": ("podTemplateFields", {"k8s.v1.cni.cncf.io/networks": "prod-vlan"}),
    "resources.requests": ("maxResources.cpu", {"cpu": "900"}),
    "resources.limits": ("maxResources.memory", {"memory": "9Ti"}),
    "resourceClaims": ("podTemplateFields", [{"name": "gpu", "resourceClaimName": "all"}]),
    "nodeSelector": ("podTemplateFields", {"node-role.kubernetes.io/control-plane": ""}),
    "tolerations": ("podTemplateFields", [{"operator": "Exists"}]),
    "affinity": (
        "podTemplateFields",
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": TERMS}},
    ),
    "priorityClassName": ("podTemplateFields", "system-node-critical"),
    "runtimeClassName": ("podTemplateFields", "nvidia"),
    "schedulerName": ("podTemplateFields", "other"),
    "serviceAccountName": ("podTemplateFields", "admin"),
    "env": ("secrets", [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "postgres", "key": "password"}}}]),
    "volumes": ("podTemplateFields", [{"name": "v", "persistentVolumeClaim": CLAIM}]),
    "volumeMounts": ("podTemplateFields", [{"name": "v", "mountPath": "/opt/venv"}]),
    "scratch": ("podTemplateFields", SCRATCH),
}
BOUNDED: dict[str, tuple[str, Any]] = {
    "hub.endpoint": ("baseModels", "https://elsewhere.example"),
    "baseModel.id": ("baseModels", "meta-llama/Llama-3.1-8B"),
    "baseModel.adapter.id": ("baseModels", "meta-llama/adapter"),
    "baseModel.tokenSecretRef": ("secrets", {"name": "postgres", "key": "password"}),
    "dataset.credentialsSecretRef": ("secrets", {"name": "postgres"}),
    "dataset.endpoint": ("endpoints", "http://169.254.169.254/latest"),
    "evaluation.gates": ("gates", [{"metric": "ast_match", "min": f"0.{number:02}"} for number in range(16)]),
    "publish.repository": ("hubOrganizations", "evil/x"),
    "publish.private": ("privateOnly", False),
    "publish.tokenSecretRef": ("secrets", {"name": "postgres", "key": "password"}),
    "publish.signing.keySecretRef": ("secrets", {"name": "cosign"}),
    "publish.oci.secretRef": ("secrets", {"name": "postgres"}),
    "publish.oci.registry": ("endpoints", "https://attacker.example"),
    "tracking.mlflow.uri": ("endpoints", "https://attacker.example"),
    "tracking.mlflow.credentialsSecretRef": ("secrets", {"name": "postgres"}),
    "tracking.wandb.endpoint": ("endpoints", "https://attacker.example"),
    "tracking.wandb.tokenSecretRef": ("secrets", {"name": "postgres"}),
    "workspace.credentialsSecretRef": ("secrets", {"name": "postgres"}),
    "workspace.manifestKeySecretRef": ("secrets", {"name": "postgres"}),
    "workspace.endpoint": ("endpoints", "http://attacker.example:9000"),
    "compute.gpus": ("maxGpus", 1),
    "compute.nodes": ("maxNodes", 2),
    "compute.gpuResource": ("gpuResources", "nvidia.com/h200"),
    "compute.modelCache.claimName": ("claims", "postgres"),
    "compute.trainerImage": ("trainerImages", "evil.example/miner"),
    "queue.priorityClass": ("priorityClasses", "urgent"),
    "retry.limit": ("maxRetries", 20),
    "maxRuntime": ("maxRuntime", "999999h"),
    "maxGpuHours": ("maxGpuHours", "1000"),
    **{f"podTemplates.{stage}.{path}": case for stage in STAGES for path, case in TEMPLATE.items()},
}
"""By field: the limit that refuses, and a value that it refuses."""
REGISTRY: dict[str, Any] = {"publish": {"oci": {"registry": "https://registry.acme.com", "repository": "tools"}}}
"""The required fields of spec.publish.oci."""
TRACKERS: dict[str, Any] = {
    "mlflow": {"uri": "https://mlflow.acme.com"},
    "wandb": {"endpoint": "https://wandb.acme.com", "tokenSecretRef": {"name": "s3"}},
}
"""The required fields of each tracker."""


def required_beside(path: str) -> dict[str, Any]:
    """Return the required fields of the model that contains a field."""
    if path.startswith("publish.oci."):
        return REGISTRY
    if path.startswith("tracking."):
        tracker = path.split(".")[1]
        return {"tracking": {tracker: TRACKERS[tracker]}}
    return {}


_LEARNING = "what is learnt, and how; its cost is bounded by maxRuntime and maxGpuHours"
_ROWS = "which of the user's own rows; their cost is bounded by maxRuntime and maxGpuHours"
_NAMESPACE = "a ConfigMap of the namespace holds no secrets, and only text is made of it"
HARMLESS: dict[str, str] = {
    "suspend": "stops the object's own run",
    "profile": "a profile that is not for the namespace is refused",
    "compute.startTimeout": "pods that wait for the others use nothing that they could not use while they train",
    "compute.gpuMemory": "refuses runs that need more, and gets no GPU",
    "baseModel.revision": "who may push to a base model may push a branch: baseModels lists whom to trust",
    "baseModel.adapter.revision": "as baseModel.revision",
    "baseModel.quantization": _LEARNING,
    "dataset.uri": "read with the Secret and the endpoint that are bounded",
    "dataset.format": _ROWS,
    "dataset.region": "names no server",
    "dataset.evaluation": _ROWS,
    "dataset.validation": _ROWS,
    "dataset.replay": _ROWS,
    "dataset.maxInvalidFraction": _ROWS,
    "dataset.maxRows": _ROWS,
    "dataset.augmentation": _ROWS,
    "tools": _NAMESPACE,
    "tokenizer.chatTemplate": f"{_NAMESPACE}, in a sandbox",
    "tokenizer": _LEARNING,
    "adapter": _LEARNING,
    "training": _LEARNING,
    "evaluation.maxRows": "the user chooses the held-out rows anyway: gates are as good as they are",
    "evaluation.maxNewTokens": _ROWS,
    "evaluation.suites": "read with the Secret and the endpoint that are bounded; gates of a profile are on metrics",
    "evaluation.onGateFailure": "none of the three publishes a model that has not passed; a draft is private",
    "publish.branch": "within a repository that is bounded",
    "publish.tag": "within a repository that is bounded",
    "publish.artifacts": "within a repository that is bounded",
    "publish.gguf": "changes the published files only",
    "publish.oci.repository": "in a registry and with a Secret that are bounded",
    "publish.serving": "changes the published files only",
    "publish.signing.keyless": "the platform team enables it; it signs as a service account of the namespace",
    "tracking.mlflow.experiment": "on a server and with a Secret that are bounded",
    "tracking.wandb.entity": "on a server and with a Secret that are bounded",
    "tracking.wandb.project": "on a server and with a Secret that are bounded",
    "workspace.uri": "written with the Secret and the endpoint that are bounded",
    "workspace.region": "names no server",
    "workspace.keepRuns": "costs storage in the user's own bucket; at most 1000",
    "compute.modelCache.maxSize": "within a claim that is bounded",
    "queue.name": "a LocalQueue of the namespace, which the platform makes",
    "stallTimeout": "only ends a stage earlier than maxRuntime does",
    "historyLimit": "entries of the object's status; at most 50",
    "retrain": "starts runs that are bounded each; how many there are is for a ResourceQuota or a queue",
    **{
        f"podTemplates.{stage}.{path}": why
        for stage in STAGES
        for path, why in {
            "topologySpreadConstraints": "choose among the nodes that a pod may have anyway",
            "terminationGracePeriodSeconds": "at most an hour, which counts in maxGpuHours",
            "sharedMemory": "counts against the memory limit, which maxResources bounds",
        }.items()
    },
}
"""By field, or by the part of the spec that all of its fields are in: why no limit needs to hold for it."""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type, such as that in `list[Gate] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, list, dict, Union, UnionType):
        for part in get_args(annotation):
            yield from models_in(part)


def fields_below(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the dotted path of every field of a model and of the models in it."""
    for field in model.model_fields.values():
        below, inner = f"{path}{field.alias}", [*models_in(field.annotation)]
        if not inner:
            yield below
        for each in inner:
            yield from fields_below(each, f"{below}.")


def parents(path: str) -> list[str]:
    """Return a path and the paths of all that it is in."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a spec's part in which the field of this path has the value."""
    for name in reversed(path.split(".")):
        value = {name: value}
    part: dict[str, Any] = value
    return part


def refusal(profile: Profile, spec: dict[str, Any]) -> RefusedError:
    """Return why the profile refuses the spec."""
    model = parsed(spec)
    fields = given(model, profile)
    with pytest.raises(RefusedError) as refused:
        check(applied(model, fields), fields, profile)
    return refused.value


@pytest.mark.parametrize("path", sorted(fields_below(FineTuneSpec)))
def test_every_spec_field_is_bounded_or_declared_harmless(path: str) -> None:
    """A new field fails here until it is in one of the two tables."""
    known = [part for part in parents(path) if part in BOUNDED or part in HARMLESS]
    assert known, f"spec.{path} is in neither table: say which limit of a FineTuneProfile bounds it, or why none has to"


def test_the_tables_list_existing_fields_once() -> None:
    """A renamed field needs a renamed entry."""
    existing = {part for path in fields_below(FineTuneSpec) for part in parents(path)}
    assert not {*BOUNDED, *HARMLESS} - existing
    assert not {*BOUNDED} & {*HARMLESS}


@pytest.mark.parametrize("path", BOUNDED)
def test_a_limit_bounds_the_field(path: str) -> None:
    """The message names the limit and the field, and the user can correct it."""
    limit, value = BOUNDED[path]
    extra = {"queue": {"name": "team-a"}, "compute": {"gpus": 0}}
    extra |= required_beside(path)
    limits = {**STRICT, "endpoints": ["*.acme.com"]} if path.startswith("tracking.") else dict(STRICT)
    if path == "compute.gpuResource":
        extra, limits = {"compute": {"gpus": 1}}, {**STRICT, "maxGpus": 1}
    error = refusal(a_profile(limits=limits), a_spec(**merged(extra, nested(path, value))))
    assert f"limits.{limit}" in str(error)
    where = "queue" if path == "queue.priorityClass" else path
    assert f"spec.{where} asks for" in str(error)
    assert error.reason is Reason.LIMIT_EXCEEDED


def test_a_permitted_template_field_is_still_limited_by_its_content() -> None:
    """Volumes name Secrets and claims, and scratch requests storage, whichever fields are permitted."""
    limits = {**STRICT, "claims": ["models"], "podTemplateFields": ["volumes", "scratch", "resources"]}
    for volume, limit in (
        ({"secret": SECRET}, "secrets allows s3"),
        ({"persistentVolumeClaim": CLAIM}, "claims allows models"),
        ({"ephemeral": {"volumeClaimTemplate": REQUEST}}, "maxResources.ephemeral-storage allows 50Gi"),
    ):
        spec = a_spec(**nested("podTemplates.publish.volumes", [{"name": "v", **volume}]))
        assert f"limits.{limit}, spec.podTemplates.publish.volumes" in str(refusal(a_profile(limits=limits), spec))
    spec = a_spec(**nested("podTemplates.train.scratch", SCRATCH))
    assert "limits.maxResources.ephemeral-storage allows 50Gi" in str(refusal(a_profile(limits=limits), spec))
    pages = a_spec(**nested("podTemplates.train.resources.limits", {"hugepages-1Gi": "900Gi"}))
    assert "limits.maxResources allows the resources cpu, memory" in str(refusal(a_profile(limits=limits), pages))


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("PYTHONPATH", "trainerImages"),
        ("LD_PRELOAD", "trainerImages"),
        ("PATH", "trainerImages"),
        ("AWS_ENDPOINT_URL_S3", "endpoints"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "endpoints"),
        ("HF_ENDPOINT", "endpoints"),
    ],
)
def test_environment_variables_cannot_bypass_image_and_endpoint_limits(name: str, limit: str) -> None:
    """Also where users may set variables. Variables of the profile stay."""
    variables = nested("podTemplates.train.env", [{"name": name, "value": "x"}])
    profile = a_profile(limits={"podTemplateFields": ["env"]})
    assert f"limits.{limit} allows no variable" in str(refusal(profile, a_spec(**variables)))
    spec, ours = parsed(a_spec()), a_profile(defaults=variables, limits={"maxGpus": 1})
    check(applied(spec, given(spec, ours)), given(spec, ours), ours)


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        ("https://s3.acme.com", True),
        ("https://eu.s3.acme.com:9000/prefix", True),
        ("http://minio.team.svc:9000", True),
        ("http://minio.team.svc:22", False),
        ("https://s3.acme.com.evil.example", False),
        ("https://evil.example/s3.acme.com", False),
        ("https://evil.example/.s3.acme.com", False),
        ("https://s3.acme.com:x", False),
        ("", False),
    ],
)
def test_endpoints_are_listed_by_host(endpoint: str, allowed: bool) -> None:
    """Neither a path that looks like a host nor a longer host name matches."""
    limits = {"endpoints": ["s3.acme.com", "*.s3.acme.com", "minio.team.svc:9000"]}
    default = {"dataset": {"endpoint": "https://default.acme.com"}}
    profile, spec = a_profile(defaults=default, limits=limits), a_spec(dataset={"endpoint": endpoint})
    if allowed:
        model = parsed(spec)
        check(applied(model, given(model, profile)), given(model, profile), profile)
    else:
        assert "limits.endpoints allows https://default.acme.com, s3.acme.com" in str(refusal(profile, spec))


@pytest.mark.parametrize("requested", [None, [], [{"metric": "ast_match", "min": "0.1"}]])
def test_required_gates_cannot_be_removed(requested: list[dict[str, str]] | None) -> None:
    """They are added to the gates of the user, of the profile and of the API defaults."""
    demanded = {"metric": "exact_match", "min": "0.8"}
    profile = a_profile(limits={"gates": [demanded]})
    spec = parsed(a_spec(**({} if requested is None else {"evaluation": {"gates": requested}})))
    fields = given(spec, profile)
    whole = applied(spec, fields)
    check(whole, fields, profile)
    gates = [gate.model_dump(mode="json", by_alias=True, exclude_none=True) for gate in whole.evaluation.gates]
    assert demanded in gates
    assert gates[:-1] == ([{"metric": "exact_match", "minGainOverBase": "0"}] if requested is None else requested)
    assert given(whole, profile).get("evaluation.gates") is None, "gates that are there are not added twice"


def test_values_of_the_defaults_are_always_permitted() -> None:
    """A profile that presets image, endpoint, claim and placement is valid with any limit."""
    defaults = {
        "compute": {"trainerImage": "ours:1", "gpuResource": "amd.com/gpu", "modelCache": {"claimName": "models"}},
        "workspace": {"uri": "s3://acme/", "endpoint": "https://s3.acme.com", "credentialsSecretRef": {"name": "w"}},
        "queue": {"name": "team", "priorityClass": "batch"},
        "podTemplates": {"train": {"tolerations": [{"operator": "Exists"}], "priorityClassName": "batch"}},
    }
    profile = a_profile(defaults=defaults, limits={"maxGpus": 1, "secrets": ["s3"]})
    for spec in (parsed(a_spec()), parsed(a_spec(compute={"gpuResource": "amd.com/gpu"}))):
        check(applied(spec, given(spec, profile)), given(spec, profile), profile)
    spec = a_spec(**nested("podTemplates.train.tolerations", []))
    assert "podTemplateFields" in str(refusal(profile, spec)), "what the profile gives is not dropped either"


@pytest.mark.parametrize("path", BOUNDED)
def test_a_profile_without_limits_permits_everything(path: str) -> None:
    """Profiles with defaults only keep their meaning."""
    extra = {"queue": {"name": "team-a"}} | required_beside(path)
    spec = parsed(a_spec(**merged(extra, nested(path, BOUNDED[path][1]))))
    check(spec, {}, a_profile(defaults={"maxRuntime": "1h"}))


@pytest.mark.parametrize(
    "parts",
    [
        nested("podTemplates.train.tolerations", [{"operator": "Exists"}]),
        nested("podTemplates.train.nodeSelector", {"node-role.kubernetes.io/control-plane": ""}),
        nested("podTemplates.train.runtimeClassName", "nvidia"),
        nested("podTemplates.train.labels", {"azure.workload.identity/use": "true"}),
        nested("podTemplates.train.annotations", {"k8s.v1.cni.cncf.io/networks": "prod-vlan"}),
        nested("podTemplates.train.affinity", {"nodeAffinity": {}}),
        nested("compute.modelCache.claimName", "postgres-data"),
        nested("compute.gpuResource", "nvidia.com/h200"),
        nested("podTemplates.prepare.resources.requests", {"cpu": "900", "memory": "9Ti"}),
        nested("podTemplates.train.priorityClassName", "system-node-critical"),
        nested("podTemplates.train.serviceAccountName", "admin"),
        nested("publish.tokenSecretRef", {"name": "postgres", "key": "password"}),
        nested("dataset.endpoint", "http://169.254.169.254/latest"),
        nested("workspace.endpoint", "http://attacker:9000"),
        nested("hub.endpoint", "http://attacker"),
        nested("maxRuntime", "999999h"),
        nested("retry.limit", 20),
        nested("publish.private", False),
    ],
)
def test_the_sample_profile_refuses_the_specs_of_the_security_review(parts: dict[str, Any]) -> None:
    """The script 23_profile.py of the review, spec by spec."""
    body, finetune = yaml.safe_load_all(SAMPLE.read_text())
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    profile = profile_of(body)
    assert not profile.error
    assert refusal(profile, merged(finetune["spec"], parts)).reason is Reason.LIMIT_EXCEEDED


def test_the_sample_profile_enforces_its_gates() -> None:
    """Also for a user with an empty list."""
    body, finetune = yaml.safe_load_all(SAMPLE.read_text())
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    profile, spec = profile_of(body), parsed(merged(finetune["spec"], {"evaluation": {"gates": []}}))
    assert len(applied(spec, given(spec, profile)).evaluation.gates) == 2

"""Limits of profiles at `kubectl apply`: the API server rejects with the operator's messages."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from kube.api import ApiError
from kube.kubelet import eventually
from kube.plane import PROFILES, Namespace, Plane
from property.builders import a_profile, a_spec, merged
from tunemill_api.constants import API_VERSION, KIND, PLURAL
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import Limits
from tunemill_dev.chart.helm import rendered
from tunemill_dev.chart.profile_policy import LEFT_TO_OPERATOR
from tunemill_operator.engine.limit_rules import MAXIMA, NAMES, SECRET_REFS
from tunemill_operator.engine.profile_limits import check
from tunemill_operator.engine.profiles import RefusedError, applied, given

Json = dict[str, Any]
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"

STRICT: Json = {
    "maxGpus": 1,
    "maxGpuHours": "1.5",
    "baseModels": ["google/*", "a.b/x?"],
    "hubOrganizations": ["acme"],
    "secrets": ["s3", "hf-*"],
    "maxResources": {"cpu": "4", "memory": "8Gi"},
    "maxRuntime": "1d1h",
    "maxRetries": 1,
    "serviceAccounts": [],
    "runtimeClasses": ["gvisor"],
    "priorityClasses": ["batch"],
    "claims": ["models"],
    "trainerImages": ["registry.example.com/ml/*"],
    "gpuResources": ["nvidia.com/gpu"],
    "privateOnly": True,
}
OPEN: Json = {"maxRetries": 20}
"""A profile that only has some limit refuses what escapes."""
EXPLICIT: Json = {"podTemplateFields": ["env", "tolerations"]}
DEFAULTS: Json = {
    "compute": {"trainerImage": "registry.example.com/default:1", "modelCache": {"claimName": "models"}},
    "queue": {"name": "gpus", "priorityClass": "batch"},
    "podTemplates": {"train": {"nodeSelector": {"pool": "gpu"}}},
}
PROFILE_SPECS: dict[str, Json] = {
    "strict": {"limits": STRICT},
    "open": {"limits": OPEN, "defaults": DEFAULTS},
    "explicit": {"limits": EXPLICIT},
    "no-gpus": {"limits": {"maxGpus": 0}},
    "servers": {"limits": {"secrets": ["s3", "hf-*"], "endpoints": ["ghcr.io"]}},
    "unlimited": {"defaults": DEFAULTS},
}


def template(**fields: Any) -> Json:
    """Return a part of a spec that sets fields of the train pod."""
    return {"podTemplates": {"train": fields}}


def variable(name: str, secret: str = "") -> Json:
    """Return a part of a spec with an environment variable of the train pod."""
    source = {"valueFrom": {"secretKeyRef": {"name": secret, "key": "k"}}} if secret else {"value": "x"}
    return template(env=[{"name": name, **source}])


def volume(**source: Any) -> Json:
    """Return a part of a spec that mounts a volume into the train pod."""
    return template(volumes=[{"name": "v", **source}], volumeMounts=[{"name": "v", "mountPath": "/v"}])


def image(secret: Json) -> Json:
    """Return a part of a spec that pushes an image with the credentials of a Secret."""
    return {"publish": {"oci": {"registry": "https://ghcr.io", "repository": "acme/tools", "secretRef": secret}}}


REFUSED: list[tuple[str, Json]] = [
    ("no-gpus", {"compute": {"gpus": 1}}),
    ("strict", {"maxGpuHours": "1.6"}),
    ("strict", {"compute": {"nodes": 2}}),
    ("strict", {"retry": {"limit": 2}}),
    ("strict", {"maxRuntime": "1d1h1s"}),
    ("strict", {"maxRuntime": "26h"}),
    ("strict", {"publish": {"private": False}}),
    ("strict", {"baseModel": {"id": "meta-llama/Llama-3.1-8B"}}),
    ("strict", {"baseModel": {"id": "aXb/x1"}}),
    ("strict", {"publish": {"repository": "evil/x"}}),
    ("strict", {"compute": {"trainerImage": "evil.example/miner"}}),
    ("strict", {"compute": {"gpus": 1, "gpuResource": "nvidia.com/h200"}}),
    ("strict", {"compute": {"modelCache": {"claimName": "postgres"}}}),
    ("strict", {"queue": {"name": "q", "priorityClass": "urgent"}}),
    ("strict", {"dataset": {"credentialsSecretRef": {"name": "postgres"}}}),
    ("strict", {"workspace": {"credentialsSecretRef": {"name": "postgres"}}}),
    ("strict", {"workspace": {"manifestKeySecretRef": {"name": "postgres"}}}),
    ("strict", {"baseModel": {"tokenSecretRef": {"name": "postgres", "key": "password"}}}),
    ("strict", {"publish": {"tokenSecretRef": {"name": "postgres", "key": "password"}}}),
    ("strict", {"publish": {"signing": {"keySecretRef": {"name": "cosign", "key": "k"}}}}),
    ("servers", image({"name": "postgres"})),
    ("servers", {"tracking": {"mlflow": {"uri": "https://ghcr.io", "credentialsSecretRef": {"name": "postgres"}}}}),
    ("servers", {"tracking": {"wandb": {"endpoint": "https://ghcr.io", "tokenSecretRef": {"name": "postgres"}}}}),
    ("strict", template(serviceAccountName="admin")),
    ("strict", template(priorityClassName="system-node-critical")),
    ("strict", template(runtimeClassName="nvidia")),
    ("strict", {"podTemplates": {"prepare": {"runtimeClassName": "x"}, "publish": {"runtimeClassName": "x"}}}),
    ("strict", variable("A", "postgres")),
    ("strict", template(resources={"requests": {"cpu": "900"}})),
    ("strict", template(resources={"limits": {"memory": "9Gi"}})),
    ("strict", {"maxGpuHours": "9", "baseModel": {"id": "a/b"}, **variable("LD_PRELOAD")}),
    ("open", template(nodeSelector={"node-role.kubernetes.io/control-plane": ""})),
    ("open", template(nodeSelector={})),
    ("open", template(tolerations=[{"operator": "Exists"}])),
    ("open", template(labels={"app": "payments"})),
    ("open", volume(persistentVolumeClaim={"claimName": "postgres"})),
    ("open", template(scratch={"size": "100Gi"})),
    ("open", template(serviceAccountName="admin")),
    ("open", {"compute": {"trainerImage": "evil.example/miner"}}),
    ("open", {"compute": {"gpus": 1, "gpuResource": "nvidia.com/h200"}}),
    ("open", {"compute": {"modelCache": {"claimName": "postgres"}}}),
    ("open", {"queue": {"name": "q", "priorityClass": "urgent"}}),
    ("open", variable("PYTHONPATH")),
    ("open", variable("AWS_ENDPOINT_URL_S3")),
    ("explicit", template(resources={"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})),
    ("explicit", template(labels={})),
    ("explicit", {"podTemplates": {"publish": {"sharedMemory": "2Gi"}}}),
]
ALLOWED: list[tuple[str, Json]] = [
    ("strict", {}),
    (
        "strict",
        {"compute": {"gpus": 1, "trainerImage": "registry.example.com/ml/a", "gpuResource": "nvidia.com/gpu"}},
    ),
    ("strict", {"maxGpuHours": "", "maxRuntime": "25h", "retry": {"limit": 0}, "publish": {"private": True}}),
    ("strict", {"baseModel": {"id": "a.b/x1"}}),
    ("strict", {"baseModel": {"tokenSecretRef": {"name": "hf-read", "key": "token"}}}),
    ("strict", {"queue": {"name": "q", "priorityClass": "batch"}, "workspace": {"keepRuns": 2}}),
    ("strict", template(resources={"requests": {"cpu": 4, "memory": "8192Mi"}}, runtimeClassName="gvisor")),
    ("strict", variable("NCCL_DEBUG", "hf-other")),
    ("open", {"compute": {"trainerImage": "registry.example.com/default:1", "gpus": 1}}),
    ("no-gpus", {}),
    ("open", template(env=[{"name": "A", "value": "x"}], tolerations=[], affinity={})),
    ("open", {"publish": {"private": False}, "maxRuntime": "999h", **template(resources={"limits": {"cpu": "900"}})}),
    ("explicit", template(tolerations=[{"operator": "Exists"}])),
    ("unlimited", {**template(tolerations=[{"operator": "Exists"}]), "compute": {"gpus": 1}}),
]


@pytest.fixture(scope="module")
def policy(plane: Plane) -> Iterator[Plane]:
    """The control plane with the chart's policy enforced, and with profiles."""
    objects = [
        item
        for item in yaml.safe_load_all(rendered({}))
        if item and item["metadata"]["name"].endswith("-profile-limits")
    ]
    paths = {"ValidatingAdmissionPolicy": POLICIES, "ValidatingAdmissionPolicyBinding": BINDINGS}
    assert {item["kind"] for item in objects} == set(paths)
    for item in objects:
        plane.api.post(paths[item["kind"]], item)
    for name, spec in PROFILE_SPECS.items():
        plane.profile(name, **spec)
    plane.profile("default-for-some", default=True, namespaces=["policy-default-?"], limits={"maxGpus": 0})
    plane.profile("default-for-all", default=True, limits={"maxGpus": 0})
    namespace = plane.namespace("policy-waits")
    eventually(
        lambda: refusal(namespace, {**a_spec(), "profile": "explicit", **template(labels={"a": "b"})}) != "",
        "the policy is in force",
    )
    yield plane
    for item in objects:
        plane.api.delete(f"{paths[item['kind']]}/{item['metadata']['name']}")
    for name in (*PROFILE_SPECS, "default-for-some", "default-for-all"):
        plane.api.delete(f"{PROFILES}/{name}")


def refusal(namespace: Namespace, spec: Json) -> str:
    """Return the API server's error for an object with this spec; empty if it is accepted."""
    body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "tried"}, "spec": spec}
    try:
        namespace.plane.api.post(f"{namespace.path(PLURAL)}?dryRun=All", body)
    except ApiError as error:
        return str(json.loads(error.message)["message"])
    return ""


def sentence(profile_name: str, spec: Json) -> str:
    """Return the operator's refusal of the spec; empty if it is permitted."""
    profile = a_profile(profile_name, **copy.deepcopy(PROFILE_SPECS[profile_name]))
    parsed_spec = FineTuneSpec.model_validate(spec)
    fields = given(parsed_spec, profile)
    try:
        check(applied(parsed_spec, fields), fields, profile)
    except RefusedError as error:
        return str(error)
    return ""


def test_the_api_server_rejects_with_the_operators_messages(policy: Plane) -> None:
    """Each limit for its field; several exceeded limits are all named."""
    namespace, wrong = policy.namespace("policy-refuses"), []
    for profile, part in REFUSED:
        spec = merged(a_spec(), {"profile": profile, **part})
        expected = sentence(profile, spec)
        assert expected, part
        found = refusal(namespace, spec)
        if not found.endswith(f"denied request: {expected}"):
            wrong.append((part, found, expected))
    assert wrong == []


def test_specs_permitted_by_the_operator_are_accepted(policy: Plane) -> None:
    """The policy is never stricter than the operator."""
    namespace = policy.namespace("policy-allows")
    for profile, part in ALLOWED:
        spec = merged(a_spec(), {"profile": profile, **part})
        assert sentence(profile, spec) == "", part
        assert refusal(namespace, spec) == "", part


def test_the_default_profile_applies_without_a_name(policy: Plane) -> None:
    """One that lists the namespace; limits of one for all namespaces are left to the operator."""
    spec, some = {**a_spec(), "compute": {"gpus": 1}}, policy.namespace("policy-default-1")
    assert "FineTuneProfile default-for-some: limits.maxGpus" in refusal(some, spec)
    assert refusal(some, a_spec()) == ""
    assert refusal(policy.namespace("policy-default-xx"), spec) == ""


def test_an_object_older_than_a_limit_can_be_labelled_suspended_and_deleted(policy: Plane) -> None:
    """Otherwise it could not be removed, not even by the operator."""
    namespace = policy.namespace("policy-older")
    policy.profile("older", limits={"maxGpus": 1})
    spec = {**a_spec(), "profile": "older", "compute": {"gpus": 1}}
    path = namespace.path(PLURAL, "older")
    policy.api.post(
        namespace.path(PLURAL), {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "older"}, "spec": spec}
    )
    policy.profile("older", limits={"maxGpus": 0})
    eventually(lambda: refusal(namespace, spec) != "", "the limit is in force")
    policy.api.patch(path, {"metadata": {"labels": {"a": "b"}, "finalizers": ["example.com/x"]}})
    with pytest.raises(ApiError, match=r"limits\.maxGpus allows 0, spec\.compute\.gpus asks for 1"):
        policy.api.patch(path, {"spec": {"maxRuntime": "1h"}})
    policy.api.patch(path, {"spec": {"suspend": True}})
    policy.api.delete(path)
    policy.api.patch(path, {"metadata": {"finalizers": None}})
    policy.api.delete(f"{PROFILES}/older")


def test_every_limit_is_in_the_policy_or_left_to_the_operator() -> None:
    """A new limit needs a decision."""
    known = {rule.limit for rule in (*MAXIMA, *NAMES)} | {"privateOnly", "secrets", "maxResources", "podTemplateFields"}
    assert {field.alias for field in Limits.model_fields.values()} == known | set(LEFT_TO_OPERATOR)
    tried = {limit for profile, part in REFUSED for limit in known if f"limits.{limit}" in sentence_of(profile, part)}
    assert tried == known
    secrets = [part for _, part in REFUSED for path in SECRET_REFS if has(part, path)]
    assert len(secrets) == len(SECRET_REFS)


def sentence_of(profile: str, part: Json) -> str:
    """Return the operator's refusal of a part of a spec."""
    return sentence(profile, merged(a_spec(), part))


def has(part: Any, path: str) -> bool:
    """Return whether a part of a spec has a field."""
    for name in path.split("."):
        part = part.get(name) if isinstance(part, dict) else None
    return part is not None

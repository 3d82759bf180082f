"""FineTuneProfiles: defaults, limits, selection, and the snapshot that a run keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from property.builders import a_finetune_body, a_profile, a_spec, parsed
from property.simulator import World
from property.worlds import a_finished_world, a_world_at, condition, entry, labels
from tunemill_api import keys
from tunemill_api.failures import Actor, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.profile import PRESET_FIELDS
from tunemill_api.stage_report import Stage
from tunemill_api.status import Phase
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.engine.plan import DeleteJob
from tunemill_operator.engine.profile_limits import check, problem_of
from tunemill_operator.engine.profiles import (
    Profile,
    RefusedError,
    applied,
    chosen,
    fields_of,
    given,
    profile_of,
)
from tunemill_operator.engine.resolved_spec import resolve_spec

SAMPLE = Path(__file__).parents[3] / "crds" / "samples" / "profile.yaml"
STAGES = ("prepare", "train", "publish")
TEMPLATE_VALUES: dict[str, Any] = {
    "labels": {"cost": "team-a"},
    "annotations": {"mesh": "off"},
    "resources.requests": {"memory": "8Gi"},
    "resources.limits": {"memory": "16Gi"},
    "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "h100"}],
    "nodeSelector": {"pool": "training"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
    "schedulerName": "bin-packing",
    "serviceAccountName": "trainer",
    "env": [{"name": "NCCL_DEBUG", "value": "INFO"}],
    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    "terminationGracePeriodSeconds": 120,
    "scratch": {"size": "100Gi", "storageClassName": "fast"},
    "sharedMemory": "8Gi",
}
"""A value for every field of a pod template."""

VALUES: dict[str, Any] = {
    "hub.endpoint": "https://hub.acme.example",
    "baseModel.tokenSecretRef": {"name": "hub-read", "key": "token"},
    "dataset.credentialsSecretRef": {"name": "s3"},
    "dataset.endpoint": "https://s3.acme.example",
    "dataset.region": "eu-1",
    "evaluation.gates": [{"metric": "exact_match", "min": "0.8"}],
    "evaluation.onGateFailure": "Draft",
    "publish.private": False,
    "publish.serving": "None",
    "publish.tokenSecretRef": {"name": "hub-write", "key": "write"},
    "tracking": {
        "mlflow": {
            "uri": "https://mlflow.acme.example",
            "experiment": "team",
            "credentialsSecretRef": {"name": "mlflow"},
        },
        "wandb": {
            "endpoint": "https://wandb.acme.example",
            "entity": "acme",
            "project": "team",
            "tokenSecretRef": {"name": "wandb", "key": "token"},
        },
    },
    "workspace.uri": "s3://tunemill/team/",
    "workspace.credentialsSecretRef": {"name": "workspace"},
    "workspace.manifestKeySecretRef": {"name": "outputs"},
    "workspace.endpoint": "https://s3.acme.example",
    "workspace.region": "eu-1",
    "workspace.keepRuns": 7,
    "compute.gpus": 4,
    "compute.nodes": 2,
    "compute.startTimeout": "5m",
    "compute.gpuResource": "amd.com/gpu",
    "compute.gpuMemory": "24Gi",
    "compute.modelCache.claimName": "models",
    "compute.modelCache.maxSize": "50Gi",
    "compute.trainerImage": "registry.acme.example/trainer:2",
    "queue": {"name": "team-a", "priorityClass": "low"},
    "retry.limit": 1,
    "maxRuntime": "2h",
    "stallTimeout": "10m",
    "maxGpuHours": "12",
    "historyLimit": 2,
    **{f"podTemplates.{stage}.{field}": value for stage in STAGES for field, value in TEMPLATE_VALUES.items()},
}
"""A value for every field that can be preset; none is what holds without a profile."""

OTHERS: dict[str, Any] = {
    "hub.endpoint": "",
    "baseModel.tokenSecretRef": {"name": "my-own", "key": "token"},
    "evaluation.gates": [],
    "publish.private": True,
    "compute.gpus": 1,
    "podTemplates.train.nodeSelector": {},
    "podTemplates.publish.serviceAccountName": "",
    "compute.trainerImage": "",
    "retry.limit": 0,
    "maxRuntime": "8h",
    "maxGpuHours": "1",
    "historyLimit": 0,
}
"""What a user may write, the values that hold without a profile among them."""


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a spec's part in which the field of this path has the value."""
    for name in reversed(path.split(".")):
        value = {name: value}
    part: dict[str, Any] = value
    return part


def of_train(**fields: Any) -> dict[str, Any]:
    """Return a spec's part with these fields in the pod template of train."""
    return {"podTemplates": {"train": fields}}


def effective(profile: Profile, **parts: Any) -> dict[str, Any]:
    """Return the fields of the effective spec for these fields of a user."""
    spec = parsed(a_spec(**parts))
    fields = given(spec, profile)
    whole = applied(spec, fields)
    check(whole, fields, profile)
    return fields_of(whole.model_dump(mode="json", by_alias=True, exclude_none=True))


def refusal(profile: Profile, **parts: Any) -> RefusedError:
    """Return why the profile refuses these fields of a user."""
    with pytest.raises(RefusedError) as refused:
        effective(profile, **parts)
    return refused.value


def test_every_default_field_has_a_case() -> None:
    """A new profile field needs a case here."""
    assert set(VALUES) == set(PRESET_FIELDS)


@pytest.mark.parametrize("path", PRESET_FIELDS)
def test_a_default_applies_to_a_field_the_user_leaves_out(path: str) -> None:
    """Every default of a profile takes effect, and changes no other field."""
    without, preset = effective(a_profile()), effective(a_profile(defaults=nested(path, VALUES[path])))
    assert preset.get(path) == VALUES[path] != without.get(path)
    assert {name for name in preset if preset[name] != without.get(name)} == {path}


@pytest.mark.parametrize("path", OTHERS)
def test_a_users_field_overrides_the_default(path: str) -> None:
    """Also with a value equal to the API default, because it is explicit."""
    profile = a_profile(defaults=nested(path, VALUES[path]))
    assert effective(profile, **nested(path, OTHERS[path]))[path] == OTHERS[path]


def test_references_lists_and_maps_are_not_merged() -> None:
    """A user's Secret never gets the profile's key, a node selector none of the profile's labels."""
    defaults = {
        "publish": {"tokenSecretRef": {"name": "hub-write", "key": "write"}},
        "podTemplates": {
            "train": {"nodeSelector": {"pool": "training"}, "resources": {"limits": {"memory": "16Gi"}}},
        },
    }
    templates = {"train": {"nodeSelector": {"gpu": "h200"}, "resources": {"requests": {"memory": "8Gi"}}}}
    token = {"tokenSecretRef": {"name": "my-own"}}
    found = effective(a_profile(defaults=defaults), publish=token, podTemplates=templates)
    assert found["publish.tokenSecretRef"] == {"name": "my-own", "key": "token"}
    assert found["podTemplates.train.nodeSelector"] == {"gpu": "h200"}
    assert found["podTemplates.train.resources.requests"] == {"memory": "8Gi"}
    assert found["podTemplates.train.resources.limits"] == {"memory": "16Gi"}


@pytest.mark.parametrize(
    ("limits", "parts", "words"),
    [
        ({"maxGpus": 4}, {"compute": {"gpus": 8}}, "limits.maxGpus allows 4, spec.compute.gpus asks for 8"),
        ({"maxNodes": 4}, {"compute": {"nodes": 5}}, "limits.maxNodes allows 4, spec.compute.nodes asks for 5"),
        ({"maxGpus": 4}, {"compute": {"nodes": 2}}, "limits.maxNodes allows 1, spec.compute.nodes asks for 2"),
        (
            {"maxGpuHours": "24"},
            {"maxGpuHours": "24.5"},
            "limits.maxGpuHours allows 24, spec.maxGpuHours asks for 24.5",
        ),
        (
            {"baseModels": ["google/*", "Qwen/Qwen3-?B"]},
            {"baseModel": {"id": "Qwen/Qwen3-14B"}},
            "limits.baseModels allows google/*, Qwen/Qwen3-?B, spec.baseModel.id asks for Qwen/Qwen3-14B",
        ),
        (
            {"hubOrganizations": ["acme-*"]},
            {"publish": {"repository": "acme/support"}},
            "limits.hubOrganizations allows acme-*, spec.publish.repository asks for acme",
        ),
        (
            {"trainerImages": []},
            {"compute": {"trainerImage": "evil.example/miner"}},
            "limits.trainerImages allows none, spec.compute.trainerImage asks for evil.example/miner",
        ),
        (
            {"serviceAccounts": ["train-*"]},
            {"podTemplates": {"prepare": {"serviceAccountName": "admin"}}},
            "limits.serviceAccounts allows train-*, spec.podTemplates.prepare.serviceAccountName asks for admin",
        ),
        (
            {"priorityClasses": ["batch"]},
            {"podTemplates": {"train": {"priorityClassName": "system-node-critical"}}},
            "limits.priorityClasses allows batch, spec.podTemplates.train.priorityClassName asks for system-node",
        ),
        (
            {"priorityClasses": ["batch"]},
            {"queue": {"name": "team-a", "priorityClass": "urgent"}},
            "limits.priorityClasses allows batch, spec.queue asks for priorityClass: urgent",
        ),
        (
            {"baseModels": ["google/*"]},
            {"hub": {"endpoint": "https://elsewhere.example"}},
            "limits.baseModels holds on the Hub https://huggingface.co only, spec.hub.endpoint asks for https://else",
        ),
        (
            {"hubOrganizations": ["acme"]},
            {"hub": {"endpoint": "https://elsewhere.example"}},
            "limits.hubOrganizations holds on the Hub https://huggingface.co only",
        ),
        (
            {"maxGpus": 1},
            {"podTemplates": {"train": {"resources": {"limits": {"nvidia.com/gpu": 8}}}}},
            "spec.podTemplates.train.resources.limits asks for nvidia.com/gpu: 8",
        ),
        (
            {"maxGpus": 1},
            {"podTemplates": {"prepare": {"resources": {"requests": {"nvidia.com/mig-1g.5gb": "7"}}}}},
            "defaults, spec.podTemplates.prepare.resources.requests asks for nvidia.com/mig-1g.5gb: 7",
        ),
        (
            {"maxGpuHours": "24"},
            {"podTemplates": {"train": {"resources": {"limits": {"amd.com/gpu": 1}}}}},
            "limits.maxGpuHours allows no devices but",
        ),
        (
            {"maxGpus": 1},
            {"podTemplates": {"train": {"resourceClaims": [{"name": "g", "resourceClaimName": "mine"}]}}},
            "defaults, spec.podTemplates.train.resourceClaims asks for g",
        ),
        (
            {"runtimeClasses": ["nvidia"]},
            {"podTemplates": {"publish": {"runtimeClassName": "kata"}}},
            "limits.runtimeClasses allows nvidia, spec.podTemplates.publish.runtimeClassName asks for kata",
        ),
        (
            {"podTemplateFields": ["resources", "env"]},
            {"podTemplates": {"train": {"volumes": [{"name": "d", "emptyDir": {}}]}}},
            "limits.podTemplateFields allows users to set resources, env, spec.podTemplates.train.volumes asks for",
        ),
        (
            {"podTemplateFields": [], "maxResources": {"cpu": "4"}},
            {"podTemplates": {"train": {"resources": {"limits": {"memory": "1Gi"}}}}},
            "limits.podTemplateFields allows users to set none, spec.podTemplates.train.resources.limits asks for",
        ),
        (
            {"maxResources": {"memory": "64Gi"}},
            {"podTemplates": {"publish": {"resources": {"limits": {"memory": "65Gi"}}}}},
            "limits.maxResources.memory allows 64Gi, spec.podTemplates.publish.resources.limits asks for memory: 65Gi",
        ),
        (
            {"maxRuntime": "4h"},
            {"maxRuntime": "0.5d"},
            "limits.maxRuntime allows 4h, spec.maxRuntime asks for 0.5d",
        ),
        (
            {"maxRetries": 1},
            {"retry": {"limit": 2}},
            "limits.maxRetries allows 1, spec.retry.limit asks for 2",
        ),
    ],
)
def test_a_value_beyond_a_limit_is_refused_with_its_name(limits: Any, parts: Any, words: str) -> None:
    """The message has the limit, its value, the field and the requested value; the remedy is for the user."""
    error = refusal(a_profile(limits=limits), **parts)
    assert words in str(error)
    assert str(error).startswith("FineTuneProfile gold: ")
    assert error.reason is Reason.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({"maxGpus": 4}, {"compute": {"gpus": 4}}),
        ({"maxNodes": 4}, {"compute": {"nodes": 4}}),
        ({"maxGpuHours": "24"}, {"maxGpuHours": "24.0"}),
        ({"baseModels": ["google/*"]}, {}),
        ({"hubOrganizations": ["acme"]}, {}),
        ({"trainerImages": []}, {}),
        ({"serviceAccounts": []}, {"podTemplates": {"prepare": {"serviceAccountName": ""}}}),
        ({"priorityClasses": []}, {}),
        ({"maxGpus": 4}, of_train(resources={"limits": {"memory": "1Ti", "cpu": 64, "hugepages-2Mi": "1Gi"}})),
        ({"runtimeClasses": ["nvidia*"]}, of_train(runtimeClassName="nvidia-cdi")),
        ({"podTemplateFields": ["env", "resources"]}, of_train(env=[{"name": "A", "value": "1"}], resources={})),
        ({"maxResources": {"memory": "64Gi", "cpu": 8}}, of_train(resources={"limits": {"memory": "65536Mi"}})),
        ({"maxRuntime": "1d", "maxRetries": 3}, {"maxRuntime": "24h", "retry": {"limit": 3}}),
        ({"trainerImages": ["registry.acme.example/*"]}, {"compute": {"trainerImage": "registry.acme.example/ml/t:1"}}),
        ({}, {"compute": {"gpus": 16, "trainerImage": "any"}, **of_train(resources={"limits": {"nvidia.com/gpu": 8}})}),
    ],
)
def test_a_value_within_the_limits_is_permitted(limits: Any, parts: Any) -> None:
    """Fields without a limit accept anything, and omitted fields need no entry in a list."""
    effective(a_profile(limits=limits), **parts)


def test_the_default_number_of_nodes_needs_no_limit() -> None:
    """A profile without nodes permits one; with a default, it permits that many."""
    profile = a_profile(defaults={"compute": {"nodes": 4}}, limits={"maxGpus": 8})
    assert effective(profile)["compute.nodes"] == 4
    assert effective(profile, compute={"nodes": 2})["compute.nodes"] == 2
    assert "limits.maxNodes allows 4" in str(refusal(profile, compute={"nodes": 5}))


def test_limits_apply_to_fields_the_user_leaves_out() -> None:
    """Defaults of the CRD and of the profile do not bypass them."""
    assert effective(a_profile(limits={"maxGpuHours": "24"}))["maxGpuHours"] == "24"
    assert effective(a_profile(limits={"maxGpuHours": "24"}), maxGpuHours="")["maxGpuHours"] == "24"
    assert effective(a_profile(limits={"maxGpus": 0}))["compute.gpus"] == 0
    assert not given(parsed(a_spec()), a_profile(limits={"maxGpus": 2})), "what is within the limit is left as it is"
    preset = a_profile(defaults={"maxGpuHours": "8"}, limits={"maxGpuHours": "24"})
    assert effective(preset)["maxGpuHours"] == "8"


def test_all_exceeded_limits_are_reported_at_once() -> None:
    """Users do not discover limits one by one."""
    limits = {"maxGpus": 1, "trainerImages": [], "baseModels": ["meta-llama/*"]}
    message = str(refusal(a_profile(limits=limits), compute={"gpus": 2, "trainerImage": "mine"}))
    assert all(limit in message for limit in limits)


def test_a_profile_that_exceeds_its_own_limits_is_for_the_platform_team_to_fix() -> None:
    """No field of the user is at fault."""
    profile = a_profile(defaults={"compute": {"trainerImage": "ours:1"}}, limits={"trainerImages": ["theirs:*"]})
    error = refusal(profile)
    assert error.reason is Reason.PROFILE_INVALID
    assert "of the profile itself, defaults.compute.trainerImage asks for ours:1" in str(error)


def test_devices_and_hub_of_the_profile_are_permitted() -> None:
    """Defaults of the platform team are permitted."""
    claims = [{"name": "gpu", "resourceClaimTemplateName": "h100"}]
    templates = of_train(resources={"limits": {"rdma/hca": 1}}, resourceClaims=claims)
    rdma = {**templates, "hub": {"endpoint": "https://hub.acme.example"}}
    profile = a_profile(defaults=rdma, limits={"maxGpus": 8, "baseModels": ["*"]})
    assert effective(profile)["podTemplates.train.resources.limits"] == {"rdma/hca": "1"}
    effective(profile, podTemplates={"train": {"resources": {"limits": {"rdma/hca": 1, "memory": "1Ti"}}}})
    assert "rdma/hca: 2" in str(refusal(profile, podTemplates={"train": {"resources": {"limits": {"rdma/hca": 2}}}}))
    assert "https://huggingface.co" in str(refusal(profile, hub={"endpoint": ""}))


@pytest.mark.parametrize("value", ["{field}", "%s", "a\nb", "{0}"])
def test_a_message_contains_the_value_unchanged(value: str) -> None:
    """A user's value is not used as a format string."""
    assert value in str(refusal(a_profile(limits={"trainerImages": []}), compute={"trainerImage": value}))


def test_resource_bounds_become_limits_where_none_is_set() -> None:
    """A container without a limit could use more than the bound. Limits of the user for other resources stay."""
    profile = a_profile(limits={"maxResources": {"memory": "64Gi", "cpu": 8}})
    found = effective(profile, **of_train(resources={"limits": {"memory": "16Gi"}}))
    assert found["podTemplates.train.resources.limits"] == {"memory": "16Gi", "cpu": "8"}
    assert found["podTemplates.publish.resources.limits"] == {"memory": "64Gi", "cpu": "8"}


def test_time_and_retry_bounds_apply_to_omitted_fields() -> None:
    """The API defaults of 8h and 3 retries do not bypass them. Lower values stay."""
    found = effective(a_profile(limits={"maxRuntime": "90m", "maxRetries": 1}))
    assert (found["maxRuntime"], found["retry.limit"]) == ("90m", 1)
    found = effective(a_profile(limits={"maxRuntime": "1d", "maxRetries": 9}))
    assert (found["maxRuntime"], found["retry.limit"]) == ("8h", 3)


def test_defaults_of_the_profile_need_no_permission() -> None:
    """The limit podTemplateFields is for fields of users; the profile's defaults may set all."""
    profile = a_profile(defaults=of_train(nodeSelector={"pool": "gpu"}), limits={"podTemplateFields": []})
    assert effective(profile)["podTemplates.train.nodeSelector"] == {"pool": "gpu"}
    assert "nodeSelector" in str(refusal(profile, **of_train(nodeSelector={})))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, ""),
        ({"defaults": nested("podTemplates.train.env", [{"name": "A", "value": "1"}])}, ""),
        ({"defaults": {"compute": {"gpus": "many"}}}, "spec.defaults.compute.gpus: "),
        ({"defaults": of_train(labels={"tunemill.dev/stage": "x"})}, "spec.defaults.podTemplates.train.labels: "),
        (
            {"defaults": of_train(serviceAccountName="admin"), "limits": {"serviceAccounts": ["train-*"]}},
            "spec.defaults.podTemplates.train.serviceAccountName asks for admin, limits.serviceAccounts allows train-*",
        ),
        ({"limits": {"maxRuntime": "soon"}}, "spec.limits.maxRuntime: "),
        ({"limits": {"baseModels": ["google/*"], "hubOrganizations": ["acme"], "maxResources": {"cpu": 1}}}, ""),
    ],
)
def test_an_invalid_profile_names_its_invalid_field(spec: dict[str, Any], words: str) -> None:
    """Before any object uses it, in the profile's status."""
    body = {"metadata": a_finetune_body()["metadata"], "spec": spec}
    problem = problem_of(profile_of(body))
    assert problem.startswith(words)
    assert bool(problem) == bool(words)


def train_key(spec: FineTuneSpec) -> str:
    """Return the key of train for the same rows."""
    return keys.train_key("prepared", spec)


def test_the_same_effective_spec_has_the_same_keys_with_and_without_a_profile() -> None:
    """Moving a value from the user's spec to a profile recomputes nothing."""
    parts = {"workspace": {"uri": "s3://tunemill/team/"}, "evaluation": {"gates": []}, "compute": {"gpus": 2}}
    written, silent = parsed(a_spec(**parts)), parsed(a_spec(profile="gold"))
    whole = applied(silent, given(silent, a_profile(defaults=parts)))
    for spec in (written, whole):
        train = keys.train_key("prepared", spec)
        found = [keys.prepare_inputs(spec), train, keys.publish_key(keys.evaluate_key(train, spec), spec)]
        assert found == [
            keys.prepare_inputs(written),
            train,
            keys.publish_key(keys.evaluate_key(train, spec), written),
        ]


@pytest.mark.parametrize(
    ("name", "namespace", "profiles", "found"),
    [
        ("", "team-a", [], None),
        ("", "team-a", [a_profile("gold")], None),
        ("", "team-a", [a_profile("gold", default=True)], "gold"),
        ("gold", "team-a", [a_profile("gold"), a_profile("base", default=True)], "gold"),
        ("gold", "team-a", [a_profile("gold", namespaces=["team-*"])], "gold"),
        ("", "other", [a_profile("gold", default=True, namespaces=["team-*"])], None),
        ("", "team-a", [a_profile("all", default=True), a_profile("a", default=True, namespaces=["team-a"])], "a"),
        ("", "team-b", [a_profile("all", default=True), a_profile("a", default=True, namespaces=["team-a"])], "all"),
    ],
)
def test_which_profile_applies(name: str, namespace: str, profiles: list[Profile], found: str | None) -> None:
    """The named one; else the default one, with precedence for a profile that lists the namespace."""
    profile = chosen(name, namespace, profiles)
    assert (profile.meta.name if profile else None) == found


@pytest.mark.parametrize(
    ("name", "profiles", "reason", "words"),
    [
        ("gold", [], Reason.PROFILE_NOT_FOUND, "spec.profile is gold, which does not exist; the namespace team-a"),
        ("gold", [a_profile("silver")], Reason.PROFILE_NOT_FOUND, "the namespace team-a may use silver"),
        (
            "gold",
            [a_profile("gold", namespaces=["team-b", "x-*"])],
            Reason.PROFILE_NOT_ALLOWED,
            "spec.profile is gold, which this namespace may not use; the namespace team-a may use none",
        ),
        ("gold", [a_profile("gold", namespaces=[])], Reason.PROFILE_NOT_ALLOWED, "this namespace may not use"),
        (
            "",
            [a_profile("silver", default=True), a_profile("gold", default=True)],
            Reason.PROFILE_AMBIGUOUS,
            "the namespace team-a has several default profiles: gold, silver",
        ),
        ("gold", [a_profile("gold", limits={"maxMoons": 1})], Reason.PROFILE_INVALID, "spec.limits.maxMoons"),
        ("", [a_profile("gold", default=True, limits={"maxMoons": 1})], Reason.PROFILE_INVALID, "cannot read"),
    ],
)
def test_a_missing_profile_is_reported_with_the_reason(
    name: str, profiles: list[Profile], reason: Reason, words: str
) -> None:
    """With the requested name and the available profiles. The run does not continue without a profile."""
    with pytest.raises(RefusedError) as refused:
        chosen(name, "team-a", profiles)
    assert refused.value.reason is reason
    assert words in str(refused.value)


def test_a_default_that_makes_the_spec_invalid_is_reported_as_the_profiles_fault() -> None:
    """A profile of a CRD newer than the operator has unknown fields."""
    body = a_finetune_body()
    profile = a_profile(default=True, defaults={"compute": {"gpus": "many"}})
    finetune = finetune_of(body)
    assert finetune.spec
    with pytest.raises(RefusedError, match=r"FineTuneProfile gold: spec.defaults.compute.gpus"):
        resolve_spec(finetune, finetune.spec, [profile])


HUB = "https://hub.acme.example"


@pytest.mark.parametrize(
    ("endpoint", "hubs", "spec", "allowed"),
    [
        ("", (), None, True),
        ("https://huggingface.co", (), None, True),
        (HUB, (), None, False),
        (HUB, (f"{HUB}/",), None, True),
        (HUB, None, None, True),
        (f"{HUB}.evil.example", (HUB,), None, False),
        (HUB, (), {"defaults": {"hub": {"endpoint": HUB}}}, True),
        (HUB, (), {"limits": {"endpoints": ["hub.acme.example"]}}, True),
        (HUB, (), {"defaults": {"maxRuntime": "1h"}}, False),
    ],
)
def test_tokens_are_sent_only_to_hubs_listed_by_the_platform(
    endpoint: str, hubs: tuple[str, ...] | None, spec: dict[str, Any] | None, allowed: bool
) -> None:
    """A token in any Secret of the namespace would be sent as a bearer token; such a run does not start."""
    finetune = finetune_of(a_finetune_body(hub={"endpoint": endpoint}))
    assert finetune.spec
    profiles = [] if spec is None else [a_profile(default=True, **spec)]
    if allowed:
        assert resolve_spec(finetune, finetune.spec, profiles, hubs).spec.hub.endpoint == endpoint
        return
    with pytest.raises(RefusedError, match=r"tokens may be sent only to https://huggingface\.co") as refused:
        resolve_spec(finetune, finetune.spec, profiles, hubs)
    assert refused.value.reason is Reason.LIMIT_EXCEEDED


def test_a_started_run_keeps_its_hub() -> None:
    """An upgrade of the operator interrupts nothing. The next edit is refused, and the status says so."""
    world = World(hub={"endpoint": HUB})
    world.settle()
    assert labels(world) == ["prepare"]
    finetune = world.finetune
    assert finetune.spec
    terms = resolve_spec(finetune, finetune.spec, [], ())
    assert terms.spec.hub.endpoint == HUB


def test_keyless_signing_must_be_enabled_by_the_platform_team() -> None:
    """Public Sigstore would publish the names of the cluster. A started run is not stopped."""
    keyless = {"publish": {"repository": "acme/tools", "signing": {"keyless": True}}}
    finetune = finetune_of(a_finetune_body(**keyless))
    assert finetune.spec
    assert resolve_spec(finetune, finetune.spec, [], sigstore=True)
    with pytest.raises(RefusedError, match=r"sigstore\.enabled in the operator's chart") as refused:
        resolve_spec(finetune, finetune.spec, [], sigstore=False)
    assert refused.value.reason is Reason.LIMIT_EXCEEDED
    begun = World(**keyless)
    begun.platform = replace(begun.platform, sigstore="")
    begun.settle()
    assert labels(begun) == ["prepare"]
    begun.platform = replace(begun.platform, sigstore=None)
    begun.settle()
    assert labels(begun) == ["prepare"]
    world = World(**keyless)
    world.settle()
    assert labels(world) == []
    assert "spec.publish.signing.keyless is true" in condition(world, "Stalled").message


def test_the_sample_profile_permits_its_sample_object() -> None:
    """The two samples fit together, and the object has three lines."""
    profile, finetune = yaml.safe_load_all(SAMPLE.read_text())
    spec = parsed(finetune["spec"])
    found = chosen(spec.profile, finetune["metadata"]["namespace"], [a_profile("team-gpus", **profile["spec"])])
    assert found
    fields = given(spec, found)
    whole = applied(spec, fields)
    check(whole, fields, found)
    assert (whole.workspace.uri, whole.max_gpu_hours) == ("s3://acme-tunemill/{namespace}/", "24")


# In the life of an object


def with_profile(world: World, **spec: Any) -> None:
    """Replace the only profile of the world."""
    world.profiles = (a_profile(default=True, **spec),)


def gpus_of(world: World) -> str:
    """Return the GPUs of the newest train Job."""
    (job,) = [job for name, job in world.jobs.items() if "train" in name]
    found: str = job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    return found


def a_training_world(**profile: Any) -> World:
    """Return an object that trains under the default profile."""
    world = World()
    with_profile(world, **profile)
    world.settle()
    world.run_pod()
    world.settle()
    (pod,) = world.live_pods()
    world.start(pod)
    world.settle()
    assert world.status.phase is Phase.TRAINING
    return world


def test_a_refused_spec_is_stalled_without_a_job_until_it_is_permitted() -> None:
    """It costs no GPU time, and needs no edit when the limit is raised."""
    world = World(compute={"gpus": 8})
    with_profile(world, limits={"maxGpus": 4})
    world.settle()
    stalled = condition(world, "Stalled")
    assert (stalled.status, stalled.reason) == ("True", "LimitExceeded")
    assert "limits.maxGpus allows 4, spec.compute.gpus asks for 8" in stalled.message
    assert "platform team" in world.status.failure.remedy
    assert world.events == ["Warning LimitExceeded"]
    assert not world.created
    with_profile(world, limits={"maxGpus": 8})
    world.settle()
    assert labels(world) == ["prepare"]
    assert condition(world, "Stalled").status == "False"


def test_a_changed_profile_does_not_affect_a_running_object_but_is_reported() -> None:
    """The run keeps its GPUs, also after a restart of the operator; describe lists the changed fields."""
    world = a_training_world(defaults={"compute": {"gpus": 4}, "maxRuntime": "2h"})
    assert gpus_of(world) == "4"
    assert condition(world, "ProfileCurrent").message == "FineTuneProfile gold sets spec.compute.gpus, spec.maxRuntime"
    jobs, before = dict(world.jobs), world.status
    with_profile(
        world,
        defaults={"compute": {"gpus": 2}, "podTemplates": {"train": {"priorityClassName": "low"}}, "maxRuntime": "2h"},
    )
    world.restart_operator()
    world.settle()
    assert world.jobs == jobs
    found = condition(world, "ProfileCurrent")
    assert (found.status, found.reason) == ("False", "ProfileChanged")
    assert "spec.compute.gpus 2 in place of 4" in found.message
    assert 'spec.podTemplates.train.priorityClassName "low" in place of ""' in found.message
    assert "maxRuntime" not in found.message
    assert world.status.profile == before.profile
    assert world.status.run == before.run


@pytest.mark.parametrize("take", ["edit", "request"])
def test_an_edit_or_a_request_uses_the_current_profile(take: str) -> None:
    """Both start a new run."""
    world = a_training_world(defaults={"compute": {"gpus": 4}})
    with_profile(world, defaults={"compute": {"gpus": 2}})
    world.settle()
    if take == "edit":
        world.edit(historyLimit=4)
    else:
        world.request("now")
    for _ in range(6):
        world.settle()
        world.run_pod()
    assert gpus_of(world) == "2"
    assert condition(world, "ProfileCurrent").status == "True"


def test_a_scheduled_run_uses_the_current_profile() -> None:
    """A nightly run is a new run."""
    world = World(retrain={"schedule": "0 2 * * *"})
    with_profile(world, defaults={"maxRuntime": "2h"})
    for _ in range(4):
        world.settle()
        world.run_pod()
    world.settle()
    with_profile(world, defaults={"maxRuntime": "3h"})
    world.settle()
    assert "3h" in condition(world, "ProfileCurrent").message
    world.seconds += 24 * 3600
    world.settle()
    assert world.status.profile.fields == {"maxRuntime": "3h"}


def test_a_run_keeps_its_profile_after_the_profile_is_deleted() -> None:
    """The run continues, and the status shows what changes for the next one."""
    world = a_training_world(defaults={"compute": {"gpus": 4}})
    world.profiles = ()
    world.settle()
    assert gpus_of(world) == "4"
    message = condition(world, "ProfileCurrent").message
    assert "no FineTuneProfile in place of FineTuneProfile gold" in message
    assert "spec.compute.gpus 1 in place of 4" in message
    assert world.status.profile.name == "gold"


def test_deleting_a_named_profile_affects_the_next_run_only() -> None:
    """The run completes. The next one would be rejected, and the status already shows this."""
    world = World(profile="gold")
    world.profiles = (a_profile("gold", defaults={"maxRuntime": "2h"}),)
    world.settle()
    world.profiles = ()
    for _ in range(4):
        world.settle()
        world.run_pod()
    assert world.status.phase is Phase.SUCCEEDED
    assert "an error: spec.profile is gold, which does not exist" in condition(world, "ProfileCurrent").message
    world.edit(historyLimit=4)
    world.settle()
    assert condition(world, "Stalled").reason == "ProfileNotFound"


def test_a_lower_limit_is_reported_and_stops_no_run() -> None:
    """Describe shows which runs exceed the new limit."""
    world = a_training_world(defaults={"compute": {"gpus": 4}})
    world.edit(compute={"gpus": 8})
    world.settle()
    world.run_pod()
    world.settle()
    jobs = dict(world.jobs)
    with_profile(world, limits={"maxGpus": 4})
    world.settle()
    assert world.jobs == jobs
    assert "limits.maxGpus allows 4, spec.compute.gpus asks for 8" in condition(world, "ProfileCurrent").message


def test_a_run_started_without_a_profile_continues_without_one() -> None:
    """The first profile of the cluster does not affect it."""
    world = a_world_at(Stage.TRAIN)
    world.reconcile()
    assert "ProfileCurrent" not in {each.type for each in world.status.conditions}
    jobs = dict(world.jobs)
    with_profile(world, defaults={"compute": {"gpus": 4}})
    world.settle()
    assert world.jobs == jobs
    message = condition(world, "ProfileCurrent").message
    assert "FineTuneProfile gold in place of no FineTuneProfile, spec.compute.gpus 4 in place of 1" in message


def test_a_finished_object_stays_ready_when_its_profile_changes() -> None:
    """Raising a gate of the profile does not unpublish a model."""
    world = a_finished_world()
    created = list(world.created)
    with_profile(world, defaults={"evaluation": {"gates": [{"metric": "exact_match", "min": "1"}]}})
    world.settle()
    assert condition(world, "Ready").status == "True"
    assert world.created == created
    assert "spec.evaluation.gates" in condition(world, "ProfileCurrent").message


def test_a_refused_edit_stops_the_running_job() -> None:
    """Otherwise it would continue without deadline and GPU hours, and bypass every limit."""
    world = a_training_world(limits={"maxGpus": 4})
    world.edit(compute={"gpus": 8})
    decided = world.reconcile()
    assert [type(action) for action in decided.actions] == [DeleteJob]
    world.settle()
    assert not world.live_jobs()
    assert world.status.failure.reason == Reason.LIMIT_EXCEEDED
    used = entry(world, Stage.TRAIN)
    assert used.finished_at is not None
    world.seconds += 72 * 3600
    world.edit(compute={"gpus": 2})
    world.settle()
    assert world.status.phase is Phase.QUEUED, "the days in between do not count against the deadline"
    assert gpus_of(world) == "2"


def test_an_unchanged_profile_causes_no_writes() -> None:
    """For permitted and refused objects, also with fields reordered by the API server."""
    for parts in ({}, {"compute": {"gpus": 8}}):
        world = World(**parts)
        with_profile(
            world, defaults={"retry": {"limit": 1}, "maxRuntime": "2h", "compute": {"gpus": 2}}, limits={"maxGpus": 4}
        )
        world.settle()
        if profile := world.finetune_body["status"].get("profile"):
            profile["fields"] = dict(sorted(profile["fields"].items()))
        writes = world.status_writes
        for _ in range(5):
            world.seconds += 300
            world.settle()
        assert world.status_writes == writes


def test_two_default_profiles_stall_objects_that_have_not_started() -> None:
    """Neither is chosen, and both are named. Running objects continue."""
    running, fresh = a_training_world(), World()
    for world in (running, fresh):
        world.profiles = (a_profile("gold", default=True), a_profile("silver", default=True))
        world.settle()
    assert running.status.phase is Phase.TRAINING
    failure = fresh.status.failure
    assert (failure.reason, failure.actor) == (Reason.PROFILE_AMBIGUOUS, Actor.PLATFORM)
    assert "gold, silver" in failure.message


def test_a_workspace_can_come_from_the_profile() -> None:
    """Data on the Hub has no bucket: a missing workspace is reported, and the run starts once it is set."""
    world = World(dataset={"uri": "hf://acme/calls"})
    world.settle()
    assert condition(world, "Stalled").reason == "InvalidSpec"
    assert "spec.workspace.uri is required" in condition(world, "Stalled").message
    with_profile(world, defaults={"workspace": {"uri": "s3://tunemill/"}})
    world.settle()
    assert labels(world) == ["prepare"]


def test_a_tracker_of_the_profile_is_always_permitted() -> None:
    """Its server and its Secret need no entry in a list; a user's own tracker is refused."""
    profile = a_profile(defaults={"tracking": VALUES["tracking"]}, limits={"maxGpus": 1, "secrets": ["s3"]})
    assert effective(profile)["tracking"] == VALUES["tracking"]
    error = refusal(profile, tracking={"mlflow": {"uri": "https://elsewhere.example"}})
    assert "spec.tracking.mlflow.uri" in str(error)

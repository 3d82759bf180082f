"""The Jobs that the operator creates: security context, mounts, environment and failure policy."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import V1Job
from property.builders import a_finetune_body, a_spec, parsed
from tunemill_api import constants
from tunemill_api.compute import MAX_NODES
from tunemill_api.failures import FINAL_EXIT_CODES
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.pod_template import TEMPLATE_FIELDS
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import StageState, StageStatus
from tunemill_api.traces import SpanRef
from tunemill_dev.played import prepared_facts
from tunemill_operator.engine.group_objects import companion_names, companions_of
from tunemill_operator.engine.objects import ANNOTATION_MEMORY_KILLS, ANNOTATION_POD, finetune_of
from tunemill_operator.engine.pods import job_of, pod_digest
from tunemill_operator.engine.stages import Facts, Ledger, Work
from tunemill_operator.engine.volumes import Platform, field_of

SPOT = Path(__file__).parents[3] / "crds" / "samples" / "spot.yaml"
WORKS = {
    "prepare": Work("prepare", (Stage.PREPARE,), "0123456789abcdef"),
    "train": Work("train", (Stage.TRAIN, Stage.EVALUATE), "0123456789abcdef"),
    "publish": Work("publish", (Stage.PUBLISH,), "0123456789abcdef"),
}
PLATFORM = Platform(
    image="registry.example.com/trainer:1",
    image_pull_policy="IfNotPresent",
    image_pull_secrets=("pull",),
    progress_url="https://progress.tunemill-system.svc:8443",
    progress_ca="-----BEGIN CERTIFICATE-----",
)
WHOLE: dict[str, Any] = {
    "baseModel": {"tokenSecretRef": {"name": "hf-read", "key": "hf"}},
    "dataset": {"credentialsSecretRef": {"name": "s3"}},
    "tools": {"configMapKeyRef": {"name": "schema", "key": "tools"}},
    "tokenizer": {"chatTemplate": {"configMapKeyRef": {"name": "chat", "key": "template"}}},
    "workspace": {"uri": "s3://runs/", "credentialsSecretRef": {"name": "s3-runs"}},
    "compute": {"gpus": 2},
    "podTemplates": {
        "prepare": {"resources": {"limits": {"memory": "2Gi"}}, "nodeSelector": {"kubernetes.io/arch": "amd64"}},
        "train": {
            "labels": {"team": "a"},
            "annotations": {"note": "x", "kueue.x-k8s.io/podset-required-topology": "rack"},
            "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "32Gi"}},
            "resourceClaims": [{"name": "fabric", "resourceClaimTemplateName": "rdma"}],
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
                        ]
                    },
                },
                "podAntiAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {
                            "weight": 5,
                            "podAffinityTerm": {
                                "topologyKey": "kubernetes.io/hostname",
                                "labelSelector": {"matchLabels": {"team": "a"}},
                            },
                        }
                    ]
                },
            },
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "priorityClassName": "training",
            "runtimeClassName": "nvidia",
            "schedulerName": "bin-packing",
            "serviceAccountName": "trainer",
            "env": [
                {"name": "NCCL_DEBUG", "value": "INFO"},
                {"name": "WANDB_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "token"}}},
            ],
            "volumes": [
                {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                {"name": "rows", "persistentVolumeClaim": {"claimName": "rows", "readOnly": True}},
                {
                    "name": "fast",
                    "ephemeral": {
                        "volumeClaimTemplate": {
                            "spec": {
                                "accessModes": ["ReadWriteOnce"],
                                "resources": {"requests": {"storage": "10Gi"}},
                            }
                        }
                    },
                },
            ],
            "volumeMounts": [
                {"name": "tmp", "mountPath": "/scratch"},
                {"name": "rows", "mountPath": "/rows", "subPath": "today", "readOnly": True},
            ],
            "terminationGracePeriodSeconds": 300,
            "scratch": {"size": "100Gi", "storageClassName": "fast-ssd"},
            "sharedMemory": "8Gi",
        },
        "publish": {"serviceAccountName": "publisher", "scratch": {"size": "50Gi"}, "priorityClassName": "soon"},
    },
}


def a_job(label: str, platform: Platform = PLATFORM, **parts: Any) -> dict[str, Any]:
    """Return the Job with this work label."""
    finetune = finetune_of(a_finetune_body(**parts))
    assert finetune.spec is not None
    ledger = Ledger(facts=Facts(prepared=prepared_facts()))
    return job_of(finetune, finetune.spec, WORKS[label], ledger, "run1", platform)


def test_tracing_settings_do_not_replace_a_running_pod() -> None:
    """Every container gets the endpoint and the parent span; the digest of a pod stays the same."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    plain, traced = a_job("train"), a_job("train", platform=replace(PLATFORM, traces=endpoint))
    span = SpanRef.of_run(plain["metadata"]["ownerReferences"][0]["uid"], "run1").traceparent
    for container in containers_of(traced):
        env = {item["name"]: item["value"] for item in container["env"]}
        assert env.items() >= {**endpoint, "TRACEPARENT": span}.items()
    assert traced["metadata"] == plain["metadata"]
    assert not [item for item in containers_of(plain)[0]["env"] if item["name"].startswith(("OTEL", "TRACE"))]


def test_proxies_and_ca_certificates_do_not_replace_a_running_pod() -> None:
    """Every container gets them, and the variable points to the certificates."""
    proxies = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".svc"}
    given = a_job("train", platform=replace(PLATFORM, proxies=proxies, ca_bundle="-----BEGIN CERTIFICATE-----"))
    (volume,) = (item for item in pod_of(given)["volumes"] if item["name"] == "authorities")
    (item,) = volume["downwardAPI"]["items"]
    annotation = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
    assert given["spec"]["template"]["metadata"]["annotations"][annotation] == "-----BEGIN CERTIFICATE-----"
    for container in containers_of(given):
        env = {item["name"]: item["value"] for item in container["env"]}
        (mount,) = (found for found in container["volumeMounts"] if found["name"] == "authorities")
        assert env.items() >= {**proxies, "TUNEMILL_CA_BUNDLE": f"{mount['mountPath']}/{item['path']}"}.items()
    plain = a_job("train")
    assert given["metadata"] == plain["metadata"]
    assert not [found for found in pod_of(plain)["volumes"] if found["name"] == "authorities"]


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    """Return the pod's spec."""
    spec: dict[str, Any] = job["spec"]["template"]["spec"]
    return spec


def containers_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all containers in the order in which they run."""
    return [*pod_of(job).get("initContainers", []), *pod_of(job)["containers"]]


def mounts_of(job: dict[str, Any]) -> dict[str, str]:
    """Return the Secret that is mounted at each path."""
    secrets = {item["name"]: item["secret"]["secretName"] for item in pod_of(job)["volumes"] if "secret" in item}
    mounts = containers_of(job)[0]["volumeMounts"]
    return {item["mountPath"]: secrets[item["name"]] for item in mounts if item["name"] in secrets}


def paths_of(job: dict[str, Any]) -> set[str]:
    """Return the paths of the container's mounts."""
    return {item["mountPath"] for item in containers_of(job)[0]["volumeMounts"]}


@pytest.mark.parametrize("label", WORKS)
@pytest.mark.parametrize("parts", [{}, WHOLE], ids=["smallest", "whole"])
def test_every_job_is_valid_for_the_kubernetes_models(label: str, parts: dict[str, Any]) -> None:
    """The official model accepts it without dropping a misspelt field."""
    job = a_job(label, **parts)
    again = V1Job.model_validate(job).model_dump(mode="json", by_alias=True)
    assert _without_nothing(again) == _without_nothing(job)


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        cleaned = {key: _without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item not in (None, {}, [], "")}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("label", WORKS)
def test_every_pod_meets_the_restricted_pod_security_standard(label: str) -> None:
    """With a read-only root file system in addition."""
    pod = pod_of(a_job(label, **WHOLE))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    for container in containers_of(a_job(label, **WHOLE)):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(
    ("label", "command"),
    [("prepare", ["prepare"]), ("train", ["stages", "train", "evaluate"]), ("publish", ["publish"])],
)
def test_each_pod_has_one_regular_container_named_as_its_work(label: str, command: list[str]) -> None:
    """So the training pod is Running and Ready: disruption budgets protect it, and Kueue does not evict it."""
    pod = pod_of(a_job(label, **WHOLE))
    assert "initContainers" not in pod
    (container,) = pod["containers"]
    assert container["name"] == label
    assert container["command"] == ["tunemill-trainer", *command]
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["resources"].get("limits", {}).get("nvidia.com/gpu") == ("2" if label == "train" else None)


@pytest.mark.parametrize(
    ("label", "mounted"),
    [
        ("prepare", {"dataset": "s3", "workspace": "s3-runs", "hub-read": "hf-read", "hub-write": "hf-write"}),
        ("train", {"workspace": "s3-runs", "hub-read": "hf-read"}),
        ("publish", {"workspace": "s3-runs", "hub-read": "hf-read", "hub-write": "hf-write"}),
    ],
)
def test_each_pod_gets_only_the_secrets_of_its_stages(label: str, mounted: dict[str, str]) -> None:
    """The GPU pod has no token with write access to the Hub."""
    expected = {f"{constants.SECRETS_DIRECTORY}/{purpose}": secret for purpose, secret in mounted.items()}
    assert mounts_of(a_job(label, **WHOLE)) == expected


SIGNED = {"publish": {"signing": {"keySecretRef": {"name": "signing"}}}}


def test_only_the_publish_pod_gets_the_signing_key() -> None:
    """Prepare, which parses untrusted rows, and the GPU pod cannot sign."""
    path = f"{constants.SECRETS_DIRECTORY}/signing"
    mounted = {label: mounts_of(a_job(label, **SIGNED)).get(path) for label in ("prepare", "train", "publish")}
    assert mounted == {"prepare": None, "train": None, "publish": "signing"}
    (volume,) = [item for item in pod_of(a_job("publish", **SIGNED))["volumes"] if item["name"] == "signing"]
    assert volume["secret"]["items"] == [{"key": "key.pem", "path": "key.pem"}]


KEYLESS = {"publish": {"signing": {"keyless": True}}}


@pytest.mark.parametrize("config", ["", '{"trustedRoot":{}}'], ids=["public", "private"])
def test_only_the_publish_pod_of_a_keyless_run_gets_a_token_for_sigstore(config: str) -> None:
    """It has no other audience. The same volume has the trust configuration of the platform."""
    platform = replace(PLATFORM, sigstore=config)
    path = f"{constants.SECRETS_DIRECTORY}/sigstore"
    jobs = {label: a_job(label, platform, **KEYLESS) for label in ("prepare", "train", "publish")}
    assert [label for label, job in jobs.items() if path in paths_of(job)] == ["publish"]
    annotations = {label: job["spec"]["template"]["metadata"]["annotations"] for label, job in jobs.items()}
    assert {label: found.get("tunemill.dev/sigstore") for label, found in annotations.items()} == {
        "prepare": None,
        "train": None,
        "publish": config,
    }
    (volume,) = [item for item in pod_of(jobs["publish"])["volumes"] if item["name"] == "sigstore"]
    token, downward = volume["projected"]["sources"]
    assert token["serviceAccountToken"] == {"audience": "sigstore", "expirationSeconds": 3600, "path": "token"}
    assert downward["downwardAPI"]["items"][0]["path"] == "trust-config.json"
    for other in (a_job("publish", platform), a_job("publish", PLATFORM, **KEYLESS)):
        assert path not in paths_of(other)


def test_enabling_keyless_signing_replaces_the_publish_pod() -> None:
    """A running one has no token. Other pods are kept."""
    for label, replaced in (("prepare", False), ("train", False), ("publish", True)):
        found = [a_job(label, **parts)["metadata"]["annotations"][ANNOTATION_POD] for parts in ({}, KEYLESS)]
        assert (found[0] != found[1]) is replaced


@pytest.mark.parametrize("uri", ["", "s3://other/place/"])
def test_every_pod_gets_the_manifest_key(uri: str) -> None:
    """Every stage writes manifests and reads those of others, also in a default workspace."""
    workspace = {"uri": uri, "manifestKeySecretRef": {"name": "outputs"}}
    path = f"{constants.SECRETS_DIRECTORY}/manifest-key"
    mounted = {
        label: mounts_of(a_job(label, workspace=workspace)).get(path) for label in ("prepare", "train", "publish")
    }
    assert mounted == {"prepare": "outputs", "train": "outputs", "publish": "outputs"}


@pytest.mark.parametrize("builder_id", ["", "https://ml.example.com"])
def test_every_stage_gets_its_image_and_builder_id(builder_id: str) -> None:
    """For the provenance of a release. Without the setting the trainer uses its own builder id."""
    job = a_job("train", replace(PLATFORM, builder_id=builder_id), compute={"trainerImage": "own:1"})
    env = {item["name"]: item["value"] for item in containers_of(job)[0]["env"]}
    assert (env["TUNEMILL_IMAGE"], env.get("TUNEMILL_BUILDER_ID", "")) == ("own:1", builder_id)


def test_a_hub_token_is_mounted_under_a_fixed_file_name() -> None:
    """The stage reads `token`, whatever the key of the Secret."""
    (volume,) = [item for item in pod_of(a_job("prepare", **WHOLE))["volumes"] if item["name"] == "hub-read"]
    assert volume["secret"]["items"] == [{"key": "hf", "path": "token"}]


def test_pods_that_load_the_base_model_share_a_model_cache() -> None:
    """The claim is mounted writable at the trainer's cache path. Prepare needs no weights and no volume."""
    fields = {"compute": {"modelCache": {"claimName": "models"}}}
    for label, wanted in (("prepare", []), ("train", ["models"]), ("publish", ["models"])):
        pod = pod_of(a_job(label, **fields))
        claims = [item["persistentVolumeClaim"] for item in pod["volumes"] if "persistentVolumeClaim" in item]
        assert claims == [{"claimName": name} for name in wanted]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] == constants.MODEL_CACHE_PATH]
            assert mounts == [{"name": name, "mountPath": constants.MODEL_CACHE_PATH} for name in wanted]


def test_a_changed_model_cache_claim_replaces_the_pod_but_its_size_does_not() -> None:
    """A corrected claim takes effect on a waiting pod."""
    models = {"modelCache": {"claimName": "models"}}
    assert digest() == digest(compute={"modelCache": {"claimName": ""}}) != digest(compute=models)
    assert digest(compute={"modelCache": {"claimName": "models", "maxSize": "5Gi"}}) == digest(compute=models)


def test_the_default_workspace_uses_the_credentials_of_the_dataset() -> None:
    """Both are in the same bucket."""
    mounted = mounts_of(a_job("train", dataset={"credentialsSecretRef": {"name": "s3"}}))
    assert mounted == {f"{constants.SECRETS_DIRECTORY}/workspace": "s3"}


def test_the_run_spec_is_an_annotation_mounted_as_a_file() -> None:
    """It has the spec without pod templates, the workspace, and the result of prepare."""
    job = a_job("train", **WHOLE)
    template = job["spec"]["template"]
    run = RunSpec.model_validate_json(template["metadata"]["annotations"][constants.ANNOTATION_RUN_SPEC])
    assert (run.namespace, run.name, run.run_id) == ("team-a", "support", "run1")
    place = {**WHOLE["workspace"], "uri": "s3://runs/team-a/"}
    assert run.spec == parsed(a_spec(**{**WHOLE, "podTemplates": {}, "workspace": place}))
    assert "NCCL_DEBUG" not in template["metadata"]["annotations"][constants.ANNOTATION_RUN_SPEC]
    assert run.prepared == prepared_facts()
    (volume,) = [item for item in pod_of(job)["volumes"] if item["name"] == "run-spec"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{constants.ANNOTATION_RUN_SPEC}']"
    (mount,) = [m["mountPath"] for m in containers_of(job)[0]["volumeMounts"] if m["name"] == "run-spec"]
    assert f"{mount}/{item['path']}" == constants.RUN_SPEC_PATH


def test_the_run_spec_contains_the_output_keys() -> None:
    """A custom trainer need not compute keys. Prepare computes its own."""
    wanted = {Stage.PREPARE: "a-request", Stage.TRAIN: "t", Stage.EVALUATE: "e", Stage.PUBLISH: "p"}
    finetune = finetune_of(a_finetune_body())
    assert finetune.spec is not None
    ledger = Ledger(
        facts=Facts(prepared=prepared_facts()),
        wanted=wanted,
        entries={s: StageStatus(name=s, state=StageState.PENDING) for s in Stage},
    )
    job = job_of(finetune, finetune.spec, WORKS["train"], ledger, "run1", PLATFORM)
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    run = RunSpec.model_validate_json(annotations[constants.ANNOTATION_RUN_SPEC])
    assert run.keys == {"train": "t", "evaluate": "e", "publish": "p"}


def test_the_run_spec_identifies_the_object() -> None:
    """By uid and cluster, as objects of other clusters in the workspace may have the same name."""
    job = a_job("train", platform=replace(PLATFORM, cluster="prod-eu"))
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    run = RunSpec.model_validate_json(annotations[constants.ANNOTATION_RUN_SPEC])
    assert (run.cluster, run.uid) == ("prod-eu", a_finetune_body()["metadata"]["uid"])


def test_each_stage_gets_only_its_own_pod_template() -> None:
    """Prepare and publish can be scheduled too, and no stage shares a service account."""
    prepare, train, publish = (pod_of(a_job(label, **WHOLE)) for label in WORKS)
    assert prepare["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
    assert not {"serviceAccountName", "tolerations", "affinity", "priorityClassName", "runtimeClassName"} & {*prepare}
    assert (train["serviceAccountName"], publish["serviceAccountName"]) == ("trainer", "publisher")
    assert (train["priorityClassName"], publish["priorityClassName"]) == ("training", "soon")
    assert not {"nodeSelector", "tolerations", "runtimeClassName"} & {*publish}


def test_every_field_of_a_pod_template_is_in_the_pod() -> None:
    """Field by field, under its Kubernetes name."""
    job = a_job("train", **WHOLE)
    template, pod, metadata = WHOLE["podTemplates"]["train"], pod_of(job), job["spec"]["template"]["metadata"]
    for name in (
        "resourceClaims",
        "nodeSelector",
        "tolerations",
        "affinity",
        "topologySpreadConstraints",
        "priorityClassName",
        "runtimeClassName",
        "schedulerName",
        "serviceAccountName",
        "terminationGracePeriodSeconds",
    ):
        assert pod[name] == template[name]
    assert metadata["labels"].items() >= template["labels"].items()
    assert metadata["annotations"].items() >= template["annotations"].items()
    (container,) = pod["containers"]
    assert container["env"][:2] == template["env"]
    assert container["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "2"},
        "claims": [{"name": "fabric"}],
    }


def test_user_volumes_cannot_collide_with_ours() -> None:
    """A user's volume may be called tmp: in the pod its name has a prefix."""
    pod = pod_of(a_job("train", **WHOLE))
    volumes = {item["name"]: item for item in pod["volumes"]}
    assert volumes["tmp"] == {"name": "tmp", "emptyDir": {}}
    assert volumes["user-tmp"] == {"name": "user-tmp", "emptyDir": {"sizeLimit": "1Gi"}}
    assert volumes["user-rows"]["persistentVolumeClaim"] == {"claimName": "rows", "readOnly": True}
    assert pod["containers"][0]["volumeMounts"][-2:] == [
        {"name": "user-tmp", "mountPath": "/scratch"},
        {"name": "user-rows", "mountPath": "/rows", "subPath": "today", "readOnly": True},
    ]
    spec = parsed(a_spec(**WHOLE))
    assert field_of(spec, "user-rows") == "spec.podTemplates.train.volumes"


def test_scratch_and_shared_memory_have_the_requested_size() -> None:
    """An ephemeral claim with a storage class, else an emptyDir with a limit; 1Gi of shared memory."""
    volumes = {
        label: {item["name"]: item for item in pod_of(a_job(label, **WHOLE))["volumes"]}
        for label in ("prepare", "train", "publish")
    }
    assert volumes["prepare"]["work"]["emptyDir"] == {}
    assert volumes["publish"]["work"]["emptyDir"] == {"sizeLimit": "50Gi"}
    claim = volumes["train"]["work"]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim == {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "fast-ssd",
        "resources": {"requests": {"storage": "100Gi"}},
    }
    assert volumes["train"]["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert volumes["publish"]["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}


@pytest.mark.parametrize(("grace", "seconds"), [(None, "50"), (300, "290"), (110, "100"), (12, "6"), (2, "1")])
def test_a_stage_gets_its_shutdown_timeout(grace: int | None, seconds: str) -> None:
    """The grace period minus ten seconds, but at least half of it, to leave time for the report."""
    template = {} if grace is None else {"terminationGracePeriodSeconds": grace}
    job = a_job("train", podTemplates={"train": template})
    assert pod_of(job)["terminationGracePeriodSeconds"] == (grace or 60)
    env = {item["name"]: item["value"] for item in pod_of(job)["containers"][0]["env"]}
    assert env["TUNEMILL_GRACE_SECONDS"] == seconds


@pytest.mark.parametrize(
    ("label", "requests"),
    [
        ("prepare", {"cpu": "500m", "memory": "2Gi"}),
        ("train", {"cpu": "1", "memory": "4Gi"}),
        ("publish", {"cpu": "500m", "memory": "2Gi"}),
    ],
)
def test_no_pod_is_best_effort(label: str, requests: dict[str, str]) -> None:
    """Quotas on requests admit every pod, and the kubelet does not evict it first."""
    (container,) = pod_of(a_job(label, compute={"gpus": 0}))["containers"]
    assert container["resources"] == {"requests": requests}


def test_default_requests_respect_limits_and_requests() -> None:
    """Kubernetes sets the request to the limit where only a limit is given."""
    limited = {"train": {"resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}}}}
    (container,) = pod_of(a_job("train", compute={"gpus": 0}, podTemplates=limited))["containers"]
    assert container["resources"] == {"requests": {"cpu": "100m"}, "limits": {"memory": "1Gi"}}


def test_openshift_can_assign_the_user_id_of_a_pod() -> None:
    """Restricted-v2 rejects a fixed user, group and fsGroup; runAsNonRoot stays."""
    context = pod_of(a_job("train", replace(PLATFORM, run_as_user=None)))["securityContext"]
    assert context == {
        "runAsNonRoot": True,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    fixed = pod_of(a_job("train"))["securityContext"]
    assert (fixed["runAsUser"], fixed["runAsGroup"], fixed["fsGroup"]) == (65532, 65532, 65532)


def test_the_spot_sample_saves_checkpoints_on_node_removal() -> None:
    """Grace period, checkpoints by time, tolerations, and the annotations of both autoscalers."""
    sample = yaml.safe_load(SPOT.read_text())["spec"]
    job = a_job("train", **{name: sample[name] for name in ("training", "podTemplates")})
    pod, annotations = pod_of(job), job["spec"]["template"]["metadata"]["annotations"]
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert {"key": "karpenter.sh/capacity-type", "operator": "Equal", "value": "spot", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]
    assert pod["terminationGracePeriodSeconds"] == 110
    run = RunSpec.model_validate_json(annotations[constants.ANNOTATION_RUN_SPEC])
    assert run.spec.training.checkpoint.every_minutes == 10


def test_a_quantity_can_be_a_number() -> None:
    """`cpu: 2` is common, and the API server stores it unchanged."""
    templates = {"train": {"resources": {"limits": {"cpu": 2}}}}
    job = a_job("train", compute={"gpus": 0}, podTemplates=templates)
    assert containers_of(job)[0]["resources"]["limits"] == {"cpu": "2"}


def test_without_gpus_none_is_requested() -> None:
    """A run on the CPU, for small models."""
    for container in containers_of(a_job("train", compute={"gpus": 0})):
        assert "limits" not in container["resources"]


def test_a_container_without_gpus_cannot_get_one_through_its_image() -> None:
    """NVIDIA's runtime reads a variable of the image; ours overrides it, but not that of a device plugin."""
    image = {"trainerImage": "any.example/with-NVIDIA_VISIBLE_DEVICES=all"}
    nvidia = {"train": {"runtimeClassName": "nvidia"}}
    jobs = [a_job(label, compute={**image, "gpus": 0}, podTemplates=nvidia) for label in WORKS]
    for container in (containers_of(job)[0] for job in [*jobs, a_job("prepare", compute={"gpus": 1})]):
        assert container["env"][-1] == {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    mig = {"train": {"resources": {"limits": {"nvidia.com/mig-1g.5gb": "1"}}}}
    for job in (a_job("train", compute={"gpus": 1}), a_job("train", compute={"gpus": 0}, podTemplates=mig)):
        assert "NVIDIA_VISIBLE_DEVICES" not in {item["name"] for item in containers_of(job)[0]["env"]}
    huge = {"train": {"resources": {"limits": {"example.kubernetes.io/x": "1"}}}}
    (container,) = containers_of(a_job("train", compute={"gpus": 0}, podTemplates=huge))
    assert container["env"][-1]["value"] == "void"


def test_users_cannot_enable_the_node_identity() -> None:
    """The operator's variable overrides the user's, unless the platform enables the node identity."""
    fields = {"train": {"env": [{"name": "AWS_EC2_METADATA_DISABLED", "value": "false"}]}}

    def values(platform: Platform) -> list[str]:
        env = containers_of(a_job("train", platform, podTemplates=fields))[0]["env"]
        return [item["value"] for item in env if item["name"] == "AWS_EC2_METADATA_DISABLED"]

    assert values(PLATFORM) == ["true"]
    assert values(replace(PLATFORM, instance_metadata=True)) == ["false"]


def test_a_permanent_failure_fails_the_job_at_once() -> None:
    """Disruptions from outside cost no retry."""
    rules = a_job("train")["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert rules[1]["onExitCodes"]["values"] == [75]
    assert rules[2]["onExitCodes"]["values"] == list(FINAL_EXIT_CODES)
    for label in WORKS:
        _, *by_code = a_job(label)["spec"]["podFailurePolicy"]["rules"]
        assert {rule["onExitCodes"]["containerName"] for rule in by_code} == {label}, "sidecars do not count"
    assert a_job("train")["spec"]["podReplacementPolicy"] == "Failed"


def a_group(name: str = "support", **parts: Any) -> dict[str, Any]:
    """Return the train Job of a run on four nodes."""
    finetune = finetune_of(a_finetune_body(name, compute={"nodes": 4, "gpus": 8}, **parts))
    assert finetune.spec is not None
    return job_of(
        finetune, finetune.spec, WORKS["train"], Ledger(facts=Facts(prepared=prepared_facts())), "r", PLATFORM
    )


def test_a_group_is_an_indexed_job_with_host_names() -> None:
    """Each pod has a DNS name, its index, the number of pods and the address of the first."""
    job = a_group(retry={"limit": 2})
    name, spec, pod = job["metadata"]["name"], job["spec"], pod_of(job)
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"], "backoffLimit" in spec) == (2, 0, False)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert spec["podReplacementPolicy"] == "Failed"
    assert pod["subdomain"] == name
    env = {item["name"]: item for item in containers_of(job)[0]["env"]}
    assert env["TUNEMILL_NODES"]["value"] == "4"
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert env["TUNEMILL_NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"] == index
    assert env["TUNEMILL_COORDINATOR"]["value"] == f"{name}-0.{name}"
    assert containers_of(job)[0]["resources"]["limits"] == {"nvidia.com/gpu": "8"}, "of each pod"
    codes = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert codes == [[75, 76], list(FINAL_EXIT_CODES)]


def test_a_group_has_a_service_and_a_network_policy_for_its_pods_only() -> None:
    """Both select the pods of this Job, and are owned by the object."""
    job = a_group()
    service, policy = companions_of(job)
    own = {"tunemill.dev/finetune": "support", "batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == own
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)
    assert service["spec"]["ports"] == [{"name": "coordinator", "port": constants.COORDINATOR_PORT}]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": own}}]}]
    assert policy["spec"]["policyTypes"] == ["Ingress"], "what they reach is for the policies of the namespace"
    for item in (service, policy):
        assert item["metadata"]["ownerReferences"] == job["metadata"]["ownerReferences"]
        assert item["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert companions_of(a_job("train")) == companions_of(a_job("prepare", compute={"nodes": 4})) == ()


@pytest.mark.parametrize("name", ["x" * 45, "7b"])
def test_names_of_groups_fit_into_host_names(name: str) -> None:
    """With the largest index; the name of a Service starts with a letter."""
    job = a_group(name)
    assert len(f"{job['metadata']['name']}-{MAX_NODES - 1}") <= 63
    (service, _), pod = companions_of(job), pod_of(job)
    assert re.fullmatch(r"[a-z][-a-z0-9]{0,62}", service["metadata"]["name"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["metadata"]["name"] == companion_names(job["metadata"]["name"])["Service"]


def test_a_single_node_job_is_unchanged() -> None:
    """An explicit default of one node does not change a running Job."""
    assert a_job("train", compute={"nodes": 1}) == a_job("train")
    for label in ("prepare", "publish"):
        many, one = (a_job(label, compute={"nodes": nodes}) for nodes in (4, 1))
        for job in (many, one):
            del job["spec"]["template"]["metadata"]["annotations"][constants.ANNOTATION_RUN_SPEC]
        assert many == one, "only train runs on several nodes"
    assert digest(compute={"nodes": 1, "startTimeout": "1h"}) == digest()
    assert digest(compute={"nodes": 2}) != digest()


def test_the_job_has_owner_reference_labels_and_annotations() -> None:
    """Labels of users cannot override ours."""
    job = a_job("train", **WHOLE)
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("uid-of-support", True, True)
    assert job["metadata"]["annotations"][constants.ANNOTATION_KEY] == "0123456789abcdef"
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert (labels[constants.LABEL_FINETUNE], labels[constants.LABEL_STAGE], labels["team"]) == (
        "support",
        "train",
        "a",
    )


def test_job_names_fit_into_a_label() -> None:
    """Kubernetes labels the pods with them. The CRD allows 45 characters for the object's name."""
    for work in WORKS.values():
        assert len(work.job_name("x" * 45)) <= 63


def test_without_a_progress_endpoint_there_is_no_progress_token() -> None:
    """Pods get no unnecessary token."""
    job = a_job("train", Platform(image="x"))
    assert not [item for item in pod_of(job)["volumes"] if item["name"] == "progress"]
    assert not [item for item in containers_of(job)[0]["env"] if item["name"].startswith("KUBEFLOW")]


def test_the_users_image_overrides_the_default_image() -> None:
    """For all stages."""
    for label in WORKS:
        job = a_job(label, compute={"trainerImage": "registry.example.com/mine:2"})
        assert {container["image"] for container in containers_of(job)} == {"registry.example.com/mine:2"}


def digest(label: str = "train", **parts: Any) -> str:
    """Return the digest of a pod of a spec with these parts."""
    return pod_digest(parsed(a_spec(**parts)), WORKS[label])


def test_the_pod_digest_ignores_fields_that_affect_no_pod() -> None:
    """Otherwise a changed gate would interrupt a training. Checkpoint settings apply to the next pod."""
    same = digest(evaluation={"gates": []}, suspend=True, maxRuntime="1h")
    assert digest() == same
    assert digest(training={"checkpoint": {"everySteps": 7, "everyMinutes": 3, "keep": 9}}) == same
    assert digest(podTemplates={"prepare": {"labels": {"a": "b"}}}) == same, "the template of another stage"


@pytest.mark.parametrize("field", TEMPLATE_FIELDS)
def test_every_field_of_a_pod_template_changes_the_digest(field: str) -> None:
    """A live pod is replaced when any field of its template is edited."""
    template = WHOLE["podTemplates"]["train"]
    assert digest(podTemplates={"train": {field: template[field]}}) != digest()


def test_the_digest_of_a_version_is_stable() -> None:
    """An upgrade must not interrupt trainings: a changed digest replaces every running pod."""
    assert digest() == "1-2a444884"
    assert digest(**WHOLE) == "1-209ce757"


def test_explicit_defaults_do_not_change_the_digest() -> None:
    """Neither does a new field with a default: values at their default are not in the digest."""
    spec = parsed(a_spec())
    whole = FineTuneSpec.model_validate(spec.model_dump(mode="json", by_alias=True, exclude_none=True))
    for work in WORKS.values():
        assert pod_digest(whole, work) == pod_digest(spec, work)


def test_oom_kills_are_an_annotation_of_the_job_and_not_in_its_digest() -> None:
    """The next pod needs smaller batches; its inputs from the spec are the same."""
    finetune = finetune_of(a_finetune_body())
    assert finetune.spec is not None
    killed = StageStatus(name=Stage.TRAIN, state=StageState.PENDING, memory_kills=2)
    entries = {s: StageStatus(name=s, state=StageState.PENDING) for s in Stage} | {Stage.TRAIN: killed}
    ledger = Ledger(facts=Facts(prepared=prepared_facts()), entries=entries, wanted=dict.fromkeys(Stage, "key"))
    job = job_of(finetune, finetune.spec, WORKS["train"], ledger, "run1", PLATFORM)
    assert job["metadata"]["annotations"][ANNOTATION_MEMORY_KILLS] == "2"
    assert job["metadata"]["annotations"][ANNOTATION_POD] == digest()
    assert a_job("train")["metadata"]["annotations"][ANNOTATION_MEMORY_KILLS] == "0"
    assert ANNOTATION_MEMORY_KILLS not in a_job("prepare")["metadata"]["annotations"]

"""The Jobs that are made: what their pods may do, what they are given, and what ends them."""

from dataclasses import replace
from typing import Any

import pytest
from kubernetes.client import V1Job
from property.builders import a_finetune_body, a_spec, parsed
from tunemill_api import constants
from tunemill_api.failures import FINAL_EXIT_CODES
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import StageState, StageStatus
from tunemill_api.traces import SpanRef
from tunemill_dev.played import prepared_facts
from tunemill_operator.engine.objects import finetune_of
from tunemill_operator.engine.pods import job_of, pod_digest
from tunemill_operator.engine.stages import Facts, Ledger, Work
from tunemill_operator.engine.volumes import Platform

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
    "compute": {
        "gpus": 2,
        "resources": {"requests": {"cpu": "4"}, "limits": {"memory": "32Gi"}},
        "prepareResources": {"limits": {"memory": "2Gi"}},
        "nodeSelector": {"gpu": "h200"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "training",
        "runtimeClassName": "nvidia",
        "serviceAccountName": "trainer",
        "podLabels": {"team": "a", constants.LABEL_STAGE: "forged"},
        "podAnnotations": {"note": "x", constants.ANNOTATION_RUN_SPEC: "forged"},
    },
}


def a_job(label: str, platform: Platform = PLATFORM, **parts: Any) -> dict[str, Any]:
    """Return the Job that does the work with this label."""
    finetune = finetune_of(a_finetune_body(**parts))
    assert finetune.spec is not None
    ledger = Ledger(facts=Facts(prepared=prepared_facts()))
    return job_of(finetune, finetune.spec, WORKS[label], ledger, "run1", platform)


def test_traces_go_with_the_run_and_replace_no_pod() -> None:
    """Every container is told the endpoint and the run's span; the digest of a pod that runs stays the same."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    plain, traced = a_job("train"), a_job("train", platform=replace(PLATFORM, traces=endpoint))
    span = SpanRef.of_run(plain["metadata"]["ownerReferences"][0]["uid"], "run1").traceparent
    for container in containers_of(traced):
        env = {item["name"]: item["value"] for item in container["env"]}
        assert env.items() >= {**endpoint, "TRACEPARENT": span}.items()
    assert traced["metadata"] == plain["metadata"]
    assert not [item for item in containers_of(plain)[0]["env"] if item["name"].startswith(("OTEL", "TRACE"))]


def test_proxies_and_authorities_go_with_the_pod_and_replace_none() -> None:
    """Every container knows them; the certificates lie where the variable says; a pod that runs stays."""
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
    """Return the secret that is mounted at each path."""
    secrets = {item["name"]: item["secret"]["secretName"] for item in pod_of(job)["volumes"] if "secret" in item}
    mounts = containers_of(job)[0]["volumeMounts"]
    return {item["mountPath"]: secrets[item["name"]] for item in mounts if item["name"] in secrets}


@pytest.mark.parametrize("label", WORKS)
@pytest.mark.parametrize("parts", [{}, WHOLE], ids=["smallest", "whole"])
def test_every_job_is_one_that_kubernetes_knows(label: str, parts: dict[str, Any]) -> None:
    """The official model accepts it and gives the same back: no misspelt field is dropped."""
    job = a_job(label, **parts)
    again = V1Job.model_validate(job).model_dump(mode="json", by_alias=True)
    assert _without_nothing(again) == _without_nothing(job)


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        cleaned = {key: _without_nothing(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item not in (None, {}, [], "")}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("label", WORKS)
def test_every_pod_is_restricted(label: str) -> None:
    """As the Pod Security Standard of that name wants it, and with a read-only root besides."""
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


def test_train_and_evaluate_share_one_regular_container() -> None:
    """Train and evaluate are processes of one container: the pod is ready while it trains, and keeps its GPU."""
    job = a_job("train")
    assert "initContainers" not in pod_of(job)
    assert [item["name"] for item in pod_of(job)["containers"]] == ["train"]
    assert pod_of(job)["containers"][0]["command"] == ["tunemill-trainer", "stages", "train", "evaluate"]
    for container in containers_of(job):
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize(
    ("label", "mounted"),
    [
        ("prepare", {"dataset": "s3", "workspace": "s3-runs", "hub-read": "hf-read", "hub-write": "hf-write"}),
        ("train", {"workspace": "s3-runs", "hub-read": "hf-read"}),
        ("publish", {"workspace": "s3-runs", "hub-read": "hf-read", "hub-write": "hf-write"}),
    ],
)
def test_each_pod_gets_only_the_secrets_of_its_stages(label: str, mounted: dict[str, str]) -> None:
    """The GPU pod holds no token that could write to the Hub."""
    expected = {f"{constants.SECRETS_DIRECTORY}/{purpose}": secret for purpose, secret in mounted.items()}
    assert mounts_of(a_job(label, **WHOLE)) == expected


def test_a_hub_token_is_a_file_of_that_name_whatever_its_key() -> None:
    """The stage looks for `token`."""
    (volume,) = [item for item in pod_of(a_job("prepare", **WHOLE))["volumes"] if item["name"] == "hub-read"]
    assert volume["secret"]["items"] == [{"key": "hf", "path": "token"}]


def test_pods_that_load_the_base_model_share_a_cache_of_models() -> None:
    """The claim is mounted where the trainer looks for it, writable; prepare needs no weights and no volume."""
    wish = {"compute": {"modelCache": {"persistentVolumeClaim": "models"}}}
    for label, wanted in (("prepare", []), ("train", ["models"]), ("publish", ["models"])):
        pod = pod_of(a_job(label, **wish))
        claims = [item["persistentVolumeClaim"] for item in pod["volumes"] if "persistentVolumeClaim" in item]
        assert claims == [{"claimName": name} for name in wanted]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] == constants.MODEL_CACHE_PATH]
            assert mounts == [{"name": name, "mountPath": constants.MODEL_CACHE_PATH} for name in wanted]


def test_another_cache_replaces_the_pod_and_its_bound_does_not() -> None:
    """A corrected claim takes effect on a pod that waits for it."""
    digests = {
        claim: pod_digest(
            parsed(a_spec(compute={"modelCache": {"persistentVolumeClaim": claim}})), WORKS["train"], Ledger()
        )
        for claim in ("", "models")
    }
    assert digests[""] == pod_digest(parsed(a_spec()), WORKS["train"], Ledger()) != digests["models"]
    bounded = parsed(a_spec(compute={"modelCache": {"persistentVolumeClaim": "models", "maxGib": 5}}))
    assert pod_digest(bounded, WORKS["train"], Ledger()) == digests["models"]


def test_without_a_workspace_the_datasets_credentials_serve() -> None:
    """They lead to the same bucket."""
    mounted = mounts_of(a_job("train", dataset={"credentialsSecretRef": {"name": "s3"}}))
    assert mounted == {f"{constants.SECRETS_DIRECTORY}/workspace": "s3"}


def test_the_run_spec_is_an_annotation_that_the_pod_sees_as_a_file() -> None:
    """It holds the whole wish and what prepare found; users' annotations cannot replace it."""
    job = a_job("train", **WHOLE)
    template = job["spec"]["template"]
    run = RunSpec.model_validate_json(template["metadata"]["annotations"][constants.ANNOTATION_RUN_SPEC])
    assert (run.namespace, run.name, run.run_id) == ("team-a", "support", "run1")
    assert run.spec == parsed(a_spec(**WHOLE))
    assert run.prepared == prepared_facts()
    (volume,) = [item for item in pod_of(job)["volumes"] if item["name"] == "run-spec"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == f"metadata.annotations['{constants.ANNOTATION_RUN_SPEC}']"
    (mount,) = [m["mountPath"] for m in containers_of(job)[0]["volumeMounts"] if m["name"] == "run-spec"]
    assert f"{mount}/{item['path']}" == constants.RUN_SPEC_PATH


def test_the_run_spec_names_the_outputs_that_stages_make() -> None:
    """A trainer of somebody else's need not know how keys are made; prepare finds its own."""
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


def test_only_the_training_pod_asks_for_a_gpu_and_its_node() -> None:
    """Prepare and publish run anywhere."""
    for label in ("prepare", "publish"):
        pod = pod_of(a_job(label, **WHOLE))
        assert pod["containers"][0]["resources"] == {"requests": {}, "limits": {"memory": "2Gi"}}
        assert not {"nodeSelector", "tolerations", "affinity", "priorityClassName", "runtimeClassName"} & pod.keys()
    pod = pod_of(a_job("train", **WHOLE))
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32Gi", "nvidia.com/gpu": "2"},
    }
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert pod["priorityClassName"] == "training"


def test_a_quantity_may_be_a_number() -> None:
    """`cpu: 2` is what people write, and what the API server hands on."""
    job = a_job("train", compute={"gpus": 0, "resources": {"limits": {"cpu": 2}}})
    assert containers_of(job)[0]["resources"]["limits"] == {"cpu": "2"}


def test_without_gpus_none_is_asked_for() -> None:
    """A run on the CPU, for small models."""
    for container in containers_of(a_job("train", compute={"gpus": 0})):
        assert container["resources"] == {"requests": {}, "limits": {}}


def test_what_cannot_heal_fails_the_job_at_once() -> None:
    """And what comes from outside costs no retry."""
    rules = a_job("train")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0] == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    for stage in [item["name"] for item in containers_of(a_job("train"))]:
        concerned = [rule for rule in rules[1:] if rule["onExitCodes"]["containerName"] == stage]
        assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in concerned] == [
            ("Ignore", [75]),
            ("FailJob", list(FINAL_EXIT_CODES)),
        ]
    assert a_job("train")["spec"]["podReplacementPolicy"] == "Failed"


def test_the_job_belongs_to_its_object_and_says_what_for() -> None:
    """By owner reference, labels and annotations; users' labels cannot replace ours."""
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


def test_names_of_jobs_fit_into_a_label() -> None:
    """Kubernetes labels the pods with them; the CRD allows 45 characters for the object's own name."""
    for work in WORKS.values():
        assert len(work.job_name("x" * 45)) <= 63


def test_without_an_endpoint_there_is_no_progress_token() -> None:
    """A pod gets nothing that it does not need."""
    job = a_job("train", Platform(image="x"))
    assert not [item for item in pod_of(job)["volumes"] if item["name"] == "progress"]
    assert not [item for item in containers_of(job)[0]["env"] if item["name"].startswith("KUBEFLOW")]


def test_the_users_image_wins_over_the_operators() -> None:
    """For all stages."""
    for label in WORKS:
        job = a_job(label, compute={"trainerImage": "registry.example.com/mine:2"})
        assert {container["image"] for container in containers_of(job)} == {"registry.example.com/mine:2"}


def test_the_digest_of_a_pod_ignores_what_no_pod_is_made_from() -> None:
    """Else a changed gate would interrupt a training."""
    work = WORKS["train"]
    same = pod_digest(parsed(a_spec(evaluation={"gates": []}, suspend=True, deadline="1h")), work, Ledger())
    assert pod_digest(parsed(a_spec()), work, Ledger()) == same
    assert pod_digest(parsed(a_spec(compute={"podLabels": {"a": "b"}})), work, Ledger()) != same

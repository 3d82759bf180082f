"""An invalid object is rejected at `kubectl apply`, with a message that names the field."""

from typing import Any

import pytest
from kube.api import ApiError
from kube.plane import Namespace
from property.builders import a_spec
from tunemill_api.constants import API_VERSION, KIND, PLURAL


def of_train(**fields: Any) -> dict[str, Any]:
    """Return a part of a spec with these fields in the pod template of train."""
    return {"podTemplates": {"train": fields}}


CHAT = {"name": "chat", "uri": "s3://team-a/chat.jsonl", "judge": "Likelihood"}
PREFERENCE: dict[str, Any] = {"dataset": {"validation": {}}, "training": {"preference": {}}}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"training": {"learningRate": "2"}}, "training.learningRate must lie above 0 and be at most 1"),
        ({"dataset": {"evaluation": {"fraction": "1"}}}, "evaluation.fraction must be between 0 and 1"),
        ({"dataset": {"validation": {"fraction": "0"}}}, "validation.fraction must be between 0 and 1"),
        ({"dataset": {"evaluation": {"fraction": "0.6"}, "validation": {"fraction": "0.5"}}}, "must add up to less"),
        ({"adapter": {"lora": {"dropout": "1"}}}, "adapter.lora.dropout must be below 1"),
        ({"training": {"preference": {}}}, "training.preference needs dataset.validation"),
        (PREFERENCE | {"adapter": {"method": "Full"}}, "training.preference works with adapter.method LoRA and IA3"),
        (PREFERENCE | {"compute": {"gpus": 2}}, "training.preference works on one GPU or on the CPU of one pod"),
        (
            PREFERENCE | {"training": {"preference": {}, "lossOn": "All"}},
            "training.preference requires training.lossOn Assistant",
        ),
        (PREFERENCE | {"training": {"preference": {"beta": "0"}}}, "training.preference.beta must be above 0"),
        (
            PREFERENCE | {"training": {"preference": {"learningRate": "2"}}},
            "training.preference.learningRate must lie above 0",
        ),
        ({"training": {"warmupRatio": "1.0"}}, "training.warmupRatio must be below 1"),
        ({"evaluation": {"gates": [{"metric": "exact_match"}]}}, "a gate needs at least one of min"),
        (
            {"evaluation": {"gates": [{"metric": "exact_match", "maxLossVsAdapter": "0"}]}},
            "minGainOverAdapter and maxLossVsAdapter in evaluation.gates need baseModel.adapter",
        ),
        (
            {"baseModel": {"adapter": {"id": "acme/week-1"}}, "adapter": {"method": "Full"}},
            "baseModel.adapter can be continued with adapter.method LoRA and IA3 only",
        ),
        ({"baseModel": {"adapter": {"id": "file:///week-1"}}}, "file:// URIs work only with `tunemill run`"),
        ({"evaluation": {"gates": [{"metric": "accuracy", "min": "0.5"}]}}, "spec.evaluation.gates[0].metric"),
        ({"evaluation": {"gates": [{"metric": "over_call_rate", "min": "0"}]}}, "needs max instead of min"),
        ({"evaluation": {"gates": [{"metric": "exact_match", "max": "1"}]}}, "can have max only on missed_call_rate"),
        ({"evaluation": {"gates": [{"min": "0.5"}]}}, "a gate needs either a metric or a suite"),
        ({"evaluation": {"gates": [{"suite": "chat", "min": "0.5"}]}}, "a suite that is not in evaluation.suites"),
        (
            {"evaluation": {"gates": [{"suite": "chat", "min": "0"}], "suites": [CHAT]}},
            "Likelihood needs maxLossVsBase",
        ),
        (
            {"evaluation": {"gates": [{"suite": "chat", "max": "0"}], "suites": [CHAT]}},
            "can have max only on missed_call_rate",
        ),
        ({"evaluation": {"suites": [CHAT, CHAT]}}, "Duplicate value"),
        ({"evaluation": {"suites": [CHAT | {"judge": "Pattern"}]}}, "a suite has a pattern if its judge is Pattern"),
        (
            {"evaluation": {"suites": [CHAT | {"uri": "file:///chat.jsonl"}]}},
            "file:// URIs work only with `tunemill run`",
        ),
        (
            {"dataset": {"replay": {"uri": "s3://team-a/chat.jsonl", "share": "1"}}},
            "replay.share must be between 0 and 1",
        ),
        ({"dataset": {"uri": "/home/me/calls.jsonl"}}, "spec.dataset.uri"),
        ({"dataset": {"uri": "hf://calls"}}, "spec.dataset.uri"),
        ({"dataset": {"uri": "file:///home/me/calls.jsonl"}}, "file:// URIs work only with `tunemill run`"),
        ({"baseModel": {"id": "file:///models/base"}}, "file:// URIs work only with `tunemill run`"),
        ({"workspace": {"uri": "file:///srv/"}}, "file:// URIs work only with `tunemill run`"),
        ({"publish": {"repository": "file:///result"}}, "file:// URIs work only with `tunemill run`"),
        ({"profile": "Gold Plan"}, "spec.profile"),
        ({"publish": {"repository": "support-tools"}}, "spec.publish.repository"),
        ({"publish": {"repository": "a/b", "signing": {}}}, "either keySecretRef or keyless: true"),
        (
            {"publish": {"repository": "a/b", "signing": {"keyless": True, "keySecretRef": {"name": "key"}}}},
            "either keySecretRef or keyless: true",
        ),
        ({"training": {"batchSize": 0}}, "spec.training.batchSize"),
        ({"maxRuntime": "soon"}, "spec.maxRuntime"),
        ({"adapter": {"method": "Full", "lora": {"rank": 8}}}, "adapter.lora may only be set with adapter.method LoRA"),
        ({"adapter": {"adalora": {"targetRank": 8}}}, "adapter.adalora may only be set with adapter.method AdaLoRA"),
        ({"adapter": {"method": "AdaLoRA", "ia3": {}}}, "adapter.ia3 may only be set with adapter.method IA3"),
        (of_train(env=[{"name": "HF_HOME", "value": "/x"}]), "the operator sets this variable itself"),
        (of_train(env=[{"name": "TUNEMILL_WORK", "value": "/x"}]), "the operator sets this variable itself"),
        (of_train(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "each name may occur only once"),
        (of_train(env=[{"name": "A", "valueFrom": {}}]), "set exactly one of secretKeyRef and configMapKeyRef"),
        (of_train(labels={"tunemill.dev/stage": "prepare"}), "are set by the operator"),
        (of_train(labels={"kueue.x-k8s.io/queue-name": "q"}), "are set by the operator"),
        (of_train(annotations={"tunemill.dev/run-spec": "{}"}), "are set by the operator"),
        (of_train(volumes=[{"name": "a", "emptyDir": {}, "secret": {"secretName": "s"}}]), "set exactly one of"),
        (of_train(volumes=[{"name": "a", "hostPath": {"path": "/"}}]), "set exactly one of"),
        (of_train(volumeMounts=[{"name": "a", "mountPath": "/tmp/x"}]), "mountPath must not"),
        (of_train(volumeMounts=[{"name": "a", "mountPath": "/var"}]), "mountPath must not"),
        (of_train(volumeMounts=[{"name": "a", "mountPath": "/data/../dev/shm"}]), "mountPath must not"),
        (of_train(volumeMounts=[{"name": "a", "mountPath": "/"}]), "mountPath"),
        (of_train(resourceClaims=[{"name": "a"}]), "set exactly one of resourceClaimName"),
        (of_train(tolerations=[{"operator": "Exist"}]), "spec.podTemplates.train.tolerations[0].operator"),
        (of_train(terminationGracePeriodSeconds=0), "spec.podTemplates.train.terminationGracePeriodSeconds"),
        ({"stallTimeout": "30"}, "spec.stallTimeout"),
        ({"maxGpuHours": "0.0"}, "maxGpuHours must be above 0"),
        ({"maxGpuHours": "a day"}, "spec.maxGpuHours"),
        ({"retrain": {"schedule": "@weekly"}}, "spec.retrain.schedule"),
        ({"retrain": {"schedule": "0 2 * *"}}, "spec.retrain.schedule"),
        ({"retrain": {"promote": "Always"}}, "spec.retrain.schedule: Required value"),
        ({"retrain": {"schedule": "0 2 * * 0", "timeZone": "../zone"}}, "spec.retrain.timeZone"),
        ({"queue": {"name": "Team A"}}, "spec.queue.name"),
        ({"queue": {"priorityClass": "high"}}, "spec.queue.name: Required value"),
        ({"baseModel": None}, "spec.baseModel: Required value"),
    ],
)
def test_an_invalid_field_is_rejected_by_name(namespace: Namespace, parts: dict[str, Any], words: str) -> None:
    """By the API server itself; no operator runs in this test."""
    assert words in namespace.refusal_of("bad", **parts)


def test_a_name_too_long_for_its_jobs_is_rejected(namespace: Namespace) -> None:
    """Jobs are named after it, and a Job's name is a label of its pods."""
    assert "at most 45 characters" in namespace.refusal_of("a" * 46)
    namespace.apply("a" * 45)


def test_a_misspelt_field_is_rejected_with_strict_validation(namespace: Namespace) -> None:
    """It is the default of kubectl."""
    body = {
        "apiVersion": "tunemill.dev/v1alpha1",
        "kind": "FunctionCallFineTune",
        "metadata": {"name": "misspelt"},
        "spec": {
            "baseModel": {"id": "a/b"},
            "dataset": {"uri": "s3://abc/x"},
            "publish": {"repository": "a/b"},
            "trainning": {},
        },
    }
    with pytest.raises(ApiError, match=r"unknown field .*spec\.trainning"):
        namespace.plane.api.post(f"{namespace.path(PLURAL)}?fieldValidation=Strict", body)


def test_a_typo_in_an_affinity_is_rejected_with_its_path(namespace: Namespace) -> None:
    """Pod templates are fully typed, so strict validation names the field."""
    terms = [{"matchExpression": [{"key": "gpu", "operator": "Exists"}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": "typo"},
        "spec": a_spec() | of_train(affinity=affinity),
    }
    with pytest.raises(ApiError, match=r"unknown field .*affinity\.nodeAffinity.*\.matchExpression\b"):
        namespace.plane.api.post(f"{namespace.path(PLURAL)}?fieldValidation=Strict", body)


@pytest.mark.parametrize("duration", ["1d", "1.5h", "1d12h", "90m", "0"])
def test_durations_have_the_usual_notation(namespace: Namespace, duration: str) -> None:
    """That of Go and Kubernetes, and days."""
    assert (
        namespace.apply(f"lasting-{duration.replace('.', '-')}", maxRuntime=duration)["spec"]["maxRuntime"] == duration
    )


def test_defaults_are_written_by_the_api_server(namespace: Namespace) -> None:
    """`kubectl get -o yaml` shows the effective values, but no settings of unselected options."""
    spec = namespace.apply("small")["spec"]
    assert spec["training"]["learningRate"] == "Auto"
    assert spec["adapter"] == {"method": "LoRA"}
    assert not {"suspend", "profile", "compute", "podTemplates"} & set(spec)
    assert not {"maxSteps", "earlyStopping"} & set(spec["training"])


def test_defaults_of_another_method_are_written_if_it_is_selected(namespace: Namespace) -> None:
    """Early stopping that is off or unset does not contradict AdaLoRA."""
    adapter = {"method": "AdaLoRA", "adalora": {"targetRank": 8}}
    spec = namespace.apply("ranks", adapter=adapter, training={"earlyStopping": {}})["spec"]
    assert spec["adapter"]["adalora"]["initialRank"] == 24
    assert "lora" not in spec["adapter"]
    assert namespace.apply("whole", adapter={"method": "Full"})["spec"]["adapter"] == {"method": "Full"}
    namespace.apply("scales", adapter={"method": "IA3"}, tokenizer={"mode": "Reuse"})


@pytest.mark.usefixtures("operator")
def test_a_quantity_can_be_a_number(namespace: Namespace) -> None:
    """`cpu: 2` is what people write, and what the API server hands to the operator."""
    namespace.apply("numbers", podTemplates={"prepare": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 2}}}})
    namespace.wait_for("numbers", "Succeeded")
    (job,) = [item for item in namespace.jobs("numbers") if "prepare" in item["metadata"]["name"]]
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "2"

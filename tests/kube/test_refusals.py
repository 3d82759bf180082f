"""A bad object is refused at `kubectl apply`, with a sentence that names the field."""

from typing import Any

import pytest
from kube.api import ApiError
from kube.plane import Namespace
from tunemill_api.constants import PLURAL


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"training": {"learningRate": "2"}}, "training.learningRate must lie above 0 and be at most 1"),
        ({"dataset": {"evaluation": {"fraction": "1"}}}, "evaluation.fraction must lie between 0 and 1"),
        ({"adapter": {"lora": {"dropout": "1"}}}, "adapter.lora.dropout must be below 1"),
        ({"training": {"warmupRatio": "1.0"}}, "training.warmupRatio must be below 1"),
        ({"evaluation": {"gates": [{"metric": "exact_match"}]}}, "a gate needs at least one of min"),
        ({"evaluation": {"gates": [{"metric": "accuracy", "min": "0.5"}]}}, "spec.evaluation.gates[0].metric"),
        ({"evaluation": {"gates": [{"metric": "over_call_rate", "min": "0"}]}}, "needs max in place of min"),
        ({"evaluation": {"gates": [{"metric": "exact_match", "max": "1"}]}}, "can have max only on missed_call_rate"),
        ({"dataset": {"uri": "/home/me/calls.jsonl"}}, "spec.dataset.uri"),
        ({"dataset": {"uri": "hf://calls"}}, "spec.dataset.uri"),
        ({"profile": "Gold Plan"}, "spec.profile"),
        ({"publish": {"repository": "support-tools"}}, "spec.publish.repository"),
        ({"training": {"batchSize": 0}}, "spec.training.batchSize"),
        ({"deadline": "soon"}, "spec.deadline"),
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
def test_a_bad_field_is_refused_by_name(namespace: Namespace, parts: dict[str, Any], words: str) -> None:
    """The API server itself answers; no operator runs in this test."""
    assert words in namespace.refusal_of("bad", **parts)


def test_a_name_that_is_too_long_for_its_jobs_is_refused(namespace: Namespace) -> None:
    """Jobs are named after it, and a Job's name is a label of its pods."""
    assert "at most 45 characters" in namespace.refusal_of("a" * 46)
    namespace.apply("a" * 45)


def test_a_misspelt_field_is_refused_by_a_strict_client(namespace: Namespace) -> None:
    """Kubectl asks for strict validation by default."""
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


def test_defaults_are_filled_in(namespace: Namespace) -> None:
    """`kubectl get -o yaml` shows what will be done, and not what will not: an option that nobody has chosen."""
    spec = namespace.apply("small")["spec"]
    assert spec["training"]["learningRate"] == "1e-4"
    assert spec["adapter"]["lora"]["rank"] == 16
    assert set(spec["adapter"]) == {"method", "lora"}
    assert not {"suspend", "profile", "compute"} & set(spec)
    assert not {"maxSteps", "earlyStopping"} & set(spec["training"])


def test_the_settings_of_another_method_are_filled_in_where_one_is_written(namespace: Namespace) -> None:
    """Early stopping that is off, or not mentioned, is none of the things that AdaLoRA does not go with."""
    adapter = {"method": "AdaLoRA", "adalora": {"targetRank": 8}}
    spec = namespace.apply("ranks", adapter=adapter, training={"earlyStopping": {}})["spec"]
    assert spec["adapter"]["adalora"]["initialRank"] == 24
    namespace.apply("scales", adapter={"method": "IA3"}, tokenizer={"mode": "Reuse"})


@pytest.mark.usefixtures("operator")
def test_a_quantity_may_be_a_number(namespace: Namespace) -> None:
    """`cpu: 2` is what people write, and what the API server hands to the operator."""
    namespace.apply("numbers", compute={"prepareResources": {"requests": {"cpu": 2}, "limits": {"cpu": 2}}})
    namespace.wait_for("numbers", "Succeeded")
    (job,) = [item for item in namespace.jobs("numbers") if "prepare" in item["metadata"]["name"]]
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "2"

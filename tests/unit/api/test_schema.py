"""The generated CRD: accepted and rejected objects, and that it is up to date."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from api.builders import a_spec
from openapi_schema_validator import OAS30Validator
from pydantic import BaseModel, ValidationError
from tunemill_api.codegen import generated_files
from tunemill_api.compute import MAX_NODES
from tunemill_api.crd import (
    custom_resource_definition,
    object_schema,
    profile_resource_definition,
    profile_schema,
)
from tunemill_api.evaluation import MAX_SUITES, Judge, Metric
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.scalars import duration_seconds, quantity_value
from tunemill_api.stage_report import Stage, StageReport, failure_of, reports_in, termination_message
from tunemill_api.status import EvaluationFacts, MetricFacts, SuiteFacts, TrainedFacts
from tunemill_api.structural import structural_schema

ROOT = Path(__file__).parents[3]


def test_generated_files_are_up_to_date():
    """`make generate` leaves no difference."""
    for name, content in generated_files().items():
        assert (ROOT / name).read_text() == content, name


def test_the_schema_accepts_what_the_model_accepts():
    """A spec with every default is valid for the schema."""
    whole = a_spec().model_dump(mode="json", by_alias=True, exclude_none=True)
    OAS30Validator(structural_schema(FineTuneSpec)).validate(whole)


def test_every_field_is_described():
    """`kubectl explain` shows a description for every field."""

    def undescribed(schema, path):
        for name, child in schema.get("properties", {}).items():
            if "description" not in child:
                yield f"{path}.{name}"
            yield from undescribed(child, f"{path}.{name}")
            yield from undescribed(child.get("items", {}), f"{path}.{name}[]")

    (version,) = custom_resource_definition()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    assert [*undescribed(properties["spec"], "spec"), *undescribed(properties["status"], "status")] == []


def test_a_union_is_rejected():
    """A type that structural schemas cannot express fails the generation, not the installation."""

    class Ambiguous(BaseModel):
        value: int | list[int]

    with pytest.raises(TypeError, match=r"Ambiguous\.value"):
        structural_schema(Ambiguous)


def test_an_unknown_field_is_rejected_with_its_path():
    """A typo in a manifest is named."""
    with pytest.raises(ValidationError, match="learningrate"):
        a_spec(training={"learningrate": "1e-4"})


def test_every_reason_has_a_remedy():
    """Every failure has a next step for the user."""
    assert set(FAILURES) == set(Reason)
    assert all(failure.remedy.endswith(".") for failure in FAILURES.values())


def test_the_results_of_all_suites_fit_into_a_termination_message():
    """Train and evaluate share one message; only URIs are omitted."""
    moment = "2026-11-21T10:00:00Z"
    metrics = [
        MetricFacts(name=metric, base="0.1234", tuned="0.1234", published="0.1234", cases=10**6) for metric in Metric
    ]
    figures = {"base": "12.3456", "tuned": "12.3456", "difference": "+12.3456", "rows": 10**6, "cases": 10**6}
    suites = [SuiteFacts(name="x" * 32, judge=Judge.LIKELIHOOD, **figures)] * MAX_SUITES
    uri = f"s3://{'x' * 200}"
    ended = {"started_at": moment, "finished_at": moment, "executed": True, "key": "0" * 16}
    trained = TrainedFacts(
        steps=10**6, loss="0.1234", train_seconds=10**6, device="NVIDIA H200", memory="x" * 120, adapter=uri
    )
    evaluation = EvaluationFacts(rows=10**6, metrics=metrics, suites=suites, report=uri)
    reports = [
        StageReport(stage=Stage.TRAIN, trained=trained, **ended),
        StageReport(stage=Stage.EVALUATE, evaluation=evaluation, **ended),
    ]
    found = [*reports_in(termination_message(reports))]
    assert [report.stage for report in found] == [Stage.TRAIN, Stage.EVALUATE]
    assert found[1].evaluation.suites == suites


def test_a_long_report_still_fits_into_a_termination_message():
    """The kubelet truncates at 4096 bytes, so the report shortens its message."""
    moment = "2026-11-21T10:00:00Z"
    failure = failure_of(Reason.DATASET_MALFORMED, "ä" * 9000)
    report = StageReport(stage=Stage.PREPARE, started_at=moment, finished_at=moment, failure=failure)
    text = report.termination_message()
    assert len(text.encode()) <= 4096
    assert StageReport.model_validate_json(text).failure.reason == Reason.DATASET_MALFORMED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28800),
        ("90m", 5400),
        ("1h30m10s", 5410),
        ("45s", 45),
        ("1d", 86400),
        ("1.5h", 5400),
        ("1d12h", 129600),
        ("0", 0),
        ("0.2s", 1),
    ],
)
def test_durations(text, seconds):
    """Durations of Go, with days in addition, are rounded up."""
    assert duration_seconds(text) == seconds
    assert a_spec(maxRuntime=text).max_runtime == text


@pytest.mark.parametrize("text", ["", "soon", "8", "-1h", "1.h", "1w", "h", "1h 30m"])
def test_invalid_durations_are_rejected(text):
    """They are not read as zero."""
    with pytest.raises(ValidationError, match="maxRuntime"):
        a_spec(maxRuntime=text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        ("16Gi", "17179869184"),
        ("1k", "1000"),
        ("1e3", "1000"),
        ("1E", "1e18"),
        (".5", "0.5"),
    ],
)
def test_quantities(text, value):
    """Quantities of Kubernetes are parsed."""
    assert quantity_value(text) == Decimal(value)


NODE_TERMS = {"nodeSelectorTerms": [{"matchExpression": []}]}
BAD_TEMPLATES = [
    ({"affinity": {"nodeAffinty": {}}}, "affinity.nodeAffinty"),
    ({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": NODE_TERMS}}}, "matchExpression"),
    ({"env": [{"name": "HOME", "value": "/"}]}, "HOME is set by the operator"),
    ({"env": [{"name": "TUNEMILL_WORK"}]}, "TUNEMILL_WORK is set by the operator"),
    ({"env": [{"name": "KUBEFLOW_TRAINER_SERVER_URL"}]}, "is set by the operator"),
    ({"env": [{"name": "https_proxy"}]}, "https_proxy is set by the operator"),
    ({"env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]}, "NVIDIA_VISIBLE_DEVICES is set by"),
    ({"env": [{"name": "A"}, {"name": "A"}]}, "the name A occurs more than once"),
    ({"labels": {"tunemill.dev/finetune": "x"}}, "tunemill.dev/finetune is set by the operator"),
    ({"labels": {"kueue.x-k8s.io/queue-name": "x"}}, "kueue.x-k8s.io/queue-name is set by the operator"),
    ({"annotations": {"tunemill.dev/run-spec": "x"}}, "tunemill.dev/run-spec is set by the operator"),
    ({"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, "hostPath"),
    ({"volumes": [{"name": "A", "emptyDir": {}}]}, "volumes.0.name"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/"}]}, "mountPath"),
    ({"volumeMounts": [{"name": "a", "mountPath": "data"}]}, "mountPath"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/var/run"}]}, "would hide /var/run/tunemill"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/var/run/tunemill/work/x"}]}, "would hide /var/run/tunemill"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/dev/termination-log"}]}, "would hide /dev"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/x/../tmp"}]}, "must not contain"),
    ({"volumeMounts": [{"name": "a", "mountPath": "/x", "subPath": "../y"}]}, "subPath"),
    ({"terminationGracePeriodSeconds": 1}, "terminationGracePeriodSeconds"),
    ({"scratch": {"storageClassName": "fast"}}, "scratch.size"),
    ({"securityContext": {}}, "securityContext"),
    ({"hostNetwork": True}, "hostNetwork"),
]


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
@pytest.mark.parametrize(("template", "words"), BAD_TEMPLATES)
def test_an_invalid_pod_template_field_is_rejected_with_its_path(stage, template, words):
    """For objects older than the CRD's rules, and for defaults of profiles; at each stage."""
    with pytest.raises(ValidationError, match=rf"(?s)podTemplates\.{stage}\..*") as refused:
        a_spec(podTemplates={stage: template})
    assert words in str(refused.value)


def test_no_part_of_a_pod_template_preserves_unknown_fields():
    """Both kinds are fully typed: a typo is rejected at `kubectl apply`, neither dropped nor passed on."""
    for schema in (object_schema(), profile_schema()):
        assert "x-kubernetes-preserve-unknown-fields" not in json.dumps(schema["properties"]["spec"])


def test_the_api_server_adds_no_settings_of_an_unselected_method():
    """A defaulted LoRA block in an object with method Full would be misleading."""
    adapter = object_schema()["properties"]["spec"]["properties"]["adapter"]
    assert all("default" not in adapter["properties"][name] for name in ("lora", "adalora", "ia3"))
    messages = [rule["message"] for rule in adapter["x-kubernetes-validations"]]
    assert [message.split(":")[0] for message in messages] == [
        "adapter.lora may only be set with adapter.method LoRA",
        "adapter.adalora may only be set with adapter.method AdaLoRA",
        "adapter.ia3 may only be set with adapter.method IA3",
    ]


def test_more_gpus_or_nodes_than_the_trainer_supports_are_rejected():
    """In both kinds."""
    for schema in (
        object_schema()["properties"]["spec"],
        profile_schema()["properties"]["spec"]["properties"]["defaults"],
    ):
        compute = schema["properties"]["compute"]["properties"]
        assert (compute["gpus"]["minimum"], compute["gpus"]["maximum"]) == (0, 16)
        assert (compute["nodes"]["minimum"], compute["nodes"]["maximum"]) == (1, MAX_NODES)


def test_a_crd_fits_into_the_last_applied_configuration_annotation():
    """It has 256 KiB for all of them together."""
    for definition in (custom_resource_definition(), profile_resource_definition()):
        assert len(json.dumps(definition)) < 200 * 1024

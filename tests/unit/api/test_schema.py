"""The generated CRD: what it accepts, what it refuses, and that it is up to date."""

from pathlib import Path

import pytest
from api.builders import a_spec
from openapi_schema_validator import OAS30Validator
from pydantic import BaseModel, ValidationError
from tunemill_api.codegen import generated_files
from tunemill_api.crd import custom_resource_definition
from tunemill_api.failures import FAILURES, Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.scalars import duration_seconds
from tunemill_api.stage_report import Stage, StageReport, failure_of
from tunemill_api.structural import structural_schema

ROOT = Path(__file__).parents[3]


def test_generated_files_are_up_to_date():
    """`make generate` leaves no difference."""
    for name, content in generated_files().items():
        assert (ROOT / name).read_text() == content, name


def test_the_schema_accepts_what_the_model_accepts():
    """A spec with every default satisfies the schema that users' objects are checked against."""
    whole = a_spec().model_dump(mode="json", by_alias=True, exclude_none=True)
    OAS30Validator(structural_schema(FineTuneSpec)).validate(whole)


def test_every_field_is_described():
    """`kubectl explain` has a sentence for every field."""

    def undescribed(schema, path):
        for name, child in schema.get("properties", {}).items():
            if "description" not in child:
                yield f"{path}.{name}"
            yield from undescribed(child, f"{path}.{name}")
            yield from undescribed(child.get("items", {}), f"{path}.{name}[]")

    (version,) = custom_resource_definition()["spec"]["versions"]
    properties = version["schema"]["openAPIV3Schema"]["properties"]
    assert [*undescribed(properties["spec"], "spec"), *undescribed(properties["status"], "status")] == []


def test_a_union_is_refused():
    """What Kubernetes could not express fails when it is generated, not when it is installed."""

    class Ambiguous(BaseModel):
        value: int | list[int]

    with pytest.raises(TypeError, match=r"Ambiguous\.value"):
        structural_schema(Ambiguous)


def test_an_unknown_field_is_refused_by_its_path():
    """A typo in a manifest names itself."""
    with pytest.raises(ValidationError, match="learningrate"):
        a_spec(training={"learningrate": "1e-4"})


def test_every_reason_has_a_remedy():
    """No failure leaves the user without a next step."""
    assert set(FAILURES) == set(Reason)
    assert all(failure.remedy.endswith(".") for failure in FAILURES.values())


def test_a_long_report_still_fits_into_a_termination_message():
    """The kubelet cuts at 4096 bytes; the report shortens its message instead of losing its end."""
    moment = "2026-11-21T10:00:00Z"
    failure = failure_of(Reason.DATASET_MALFORMED, "ä" * 9000)
    report = StageReport(stage=Stage.PREPARE, started_at=moment, finished_at=moment, failure=failure)
    text = report.termination_message()
    assert len(text.encode()) <= 4096
    assert StageReport.model_validate_json(text).failure.reason == Reason.DATASET_MALFORMED


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m10s", 5410), ("45s", 45)])
def test_durations(text, seconds):
    """A duration is read as Go writes it."""
    assert duration_seconds(text) == seconds

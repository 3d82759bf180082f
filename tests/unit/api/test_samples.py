"""The samples that users copy are valid."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_schema_validator import OAS30Validator
from tunemill_api.constants import API_VERSION, KIND
from tunemill_api.crd import NAME_LENGTH, object_schema
from tunemill_api.finetune import FineTuneSpec, effective_workspace

SAMPLES = Path(__file__).parents[3] / "crds" / "samples"
NAMES = [path.name for path in sorted(SAMPLES.glob("*.yaml"))]


def sample(name: str) -> dict[str, Any]:
    """Return the FunctionCallFineTune of a sample; the file may also contain ConfigMaps."""
    (found,) = [body for body in yaml.safe_load_all((SAMPLES / name).read_text()) if body["kind"] == KIND]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_valid_for_the_pydantic_models(name):
    """The models reject unknown fields and values out of bounds."""
    manifest = sample(name)
    assert (manifest["apiVersion"], manifest["kind"]) == (API_VERSION, KIND)
    assert len(manifest["metadata"]["name"]) <= NAME_LENGTH
    FineTuneSpec.model_validate(manifest["spec"])


@pytest.fixture(scope="module")
def crd() -> OAS30Validator:
    """The schema of the CRD."""
    return OAS30Validator(object_schema())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_valid_for_the_crd_schema(crd, name):
    """As applied by a user."""
    crd.validate(sample(name))


def test_the_smallest_sample_has_the_required_fields_and_nothing_else():
    """Removing any field makes it invalid."""
    spec = sample("smallest.yaml")["spec"]
    assert {part: list(fields) for part, fields in spec.items()} == {
        "baseModel": ["id"],
        "dataset": ["uri"],
        "publish": ["repository"],
    }
    for part in spec:
        with pytest.raises(ValueError, match=f"(?s){part}.*required"):
            FineTuneSpec.model_validate({name: fields for name, fields in spec.items() if name != part})


def test_the_demo_uses_only_local_services_and_no_gpu():
    """`make demo` works without any account."""
    spec = FineTuneSpec.model_validate(sample("demo.yaml")["spec"])
    endpoints = {spec.hub.endpoint, spec.dataset.endpoint, effective_workspace(spec).endpoint}
    assert all(endpoint.split("//")[1].split(":")[0].endswith(".tunemill-dev") for endpoint in endpoints)
    assert spec.compute.gpus == 0
    assert spec.publish.private


def test_the_agents_course_sample_matches_its_recipe():
    """With the hyperparameters of the course's notebook."""
    spec = FineTuneSpec.model_validate(sample("agents-course.yaml")["spec"])
    lora, training = spec.adapter.lora, spec.training
    assert (lora.rank, lora.alpha, lora.dropout) == (16, 64, "0.05")
    assert (training.learning_rate, training.scheduler, training.warmup_ratio) == ("1e-4", "Cosine", "0.1")
    assert (training.epochs, training.max_length, spec.tokenizer.mode) == (1, 1500, "Extend")


def test_the_functiongemma_sample_matches_its_recipe():
    """With the hyperparameters of Google's guide."""
    spec = FineTuneSpec.model_validate(sample("functiongemma.yaml")["spec"])
    training = spec.training
    assert (spec.base_model.id, spec.adapter.method) == ("google/functiongemma-270m-it", "Full")
    assert (training.epochs, training.batch_size, training.max_length) == (8, 4, 512)
    assert (training.learning_rate, training.scheduler, float(training.warmup_ratio)) == ("5e-5", "Constant", 0)
    assert (spec.dataset.format, spec.dataset.evaluation.fraction) == ("Simple", "0.5")

"""Builders of API objects that read like a sentence."""

from collections.abc import Callable
from typing import Any, get_args

from tunemill_api.base import ApiModel
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.status import EvaluationFacts, MetricFacts


def a_spec(**parts: Any) -> FineTuneSpec:
    """Return the smallest spec, with whole parts replaced by their camelCase name."""
    smallest = {
        "baseModel": {"id": "google/gemma-2-2b-it"},
        "dataset": {"uri": "s3://team-a-data/support/calls.jsonl"},
        "publish": {"repository": "acme/support-tools"},
    }
    return FineTuneSpec.model_validate(smallest | parts)


def an_evaluation(name: str = "exact_match", base: str = "0.1000", tuned: str = "0.9000") -> EvaluationFacts:
    """Return an evaluation of fifty rows with one metric."""
    return EvaluationFacts(rows=50, metrics=[MetricFacts(name=name, base=base, tuned=tuned, cases=50)])


def fields_of_spec(is_whole: Callable[[str], bool], model: type[ApiModel] = FineTuneSpec, path: str = "") -> list[str]:
    """Return the dotted paths of all fields of the spec, down to what is no part of the API with fields of its own.

    Args:
        is_whole: whether to return a path as one field, although it has fields of its own.
        model: of the part at the path.
        path: where to begin.
    """
    found: list[str] = []
    for field in model.model_fields.values():
        here = f"{path}.{field.alias}".lstrip(".")
        parts = [field.annotation, *get_args(field.annotation)]
        part = next((item for item in parts if isinstance(item, type) and issubclass(item, ApiModel)), None)
        found += [here] if part is None or is_whole(here) else fields_of_spec(is_whole, part, here)
    return found

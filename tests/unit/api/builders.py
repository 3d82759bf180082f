"""Builders of API objects that read like a sentence."""

from typing import Any

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
    """Return the judgement of fifty rows by one metric."""
    return EvaluationFacts(rows=50, metrics=[MetricFacts(name=name, base=base, tuned=tuned, cases=50)])

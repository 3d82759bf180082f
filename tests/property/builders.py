"""Builders of what the operator decides on: objects, reports, facts. They read like a sentence."""

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage, StageReport, failure_of
from tunemill_api.status import (
    DatasetFacts,
    EvaluationFacts,
    MetricFacts,
    PreparedFacts,
    PublishedFacts,
    ServingFacts,
    TrainedFacts,
)
from tunemill_operator.engine.profiles import Profile, profile_of
from tunemill_operator.engine.volumes import Platform

NOON = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
PLATFORM = Platform(image="registry.example.com/trainer:1")
SMALLEST: dict[str, Any] = {
    "baseModel": {"id": "google/gemma-2-2b-it"},
    "dataset": {"uri": "s3://team-a-data/support/calls.jsonl"},
    "publish": {"repository": "acme/support-tools"},
}


def at(seconds: float) -> datetime:
    """Return the time so many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def text(time: datetime) -> str:
    """Return a time as Kubernetes writes it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def a_spec(**parts: Any) -> dict[str, Any]:
    """Return the smallest spec as a user writes it; a part is merged into what is there."""
    return merged(SMALLEST, parts)


def parsed(spec: dict[str, Any]) -> FineTuneSpec:
    """Return the model of a spec."""
    return FineTuneSpec.model_validate(spec)


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `change` merged in, as kubectl does; None removes."""
    result = deepcopy(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = deepcopy(value)
    return result


def a_finetune_body(name: str = "support", namespace: str = "team-a", **parts: Any) -> dict[str, Any]:
    """Return a FunctionCallFineTune as the API server sends it."""
    return {
        "apiVersion": "tunemill.dev/v1alpha1",
        "kind": "FunctionCallFineTune",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-of-{name}",
            "resourceVersion": "1",
            "generation": 1,
            "creationTimestamp": text(NOON),
        },
        "spec": a_spec(**parts),
    }


def a_profile(name: str = "gold", **spec: Any) -> Profile:
    """Return a FineTuneProfile as the operator sees it."""
    return profile_of(
        {
            "metadata": {
                "name": name,
                "uid": f"uid-of-{name}",
                "resourceVersion": "1",
                "creationTimestamp": text(NOON),
            },
            "spec": spec,
        }
    )


def prepared_facts(key: str = "0123456789abcdef") -> PreparedFacts:
    """Return what prepare found in a hundred rows."""
    data = DatasetFacts(format="OpenAI", rows=100, train_rows=90, evaluation_rows=10)
    return PreparedFacts(
        key=key, base_model_revision="c0ffee" * 6, dataset_digest="sha256:d1", tokenizer_mode="Extend", dataset=data
    )


def trained_facts() -> TrainedFacts:
    """Return a short training run."""
    return TrainedFacts(steps=12, loss="0.2347", train_seconds=60, device="cpu", adapter="s3://team-a-data/x/adapter")


def evaluation_facts(tuned: str = "0.9000", base: str = "0.1000", published: str = "") -> EvaluationFacts:
    """Return the judgement of ten rows."""
    exact = MetricFacts(name="exact_match", base=base, tuned=tuned, published=published, cases=10)
    return EvaluationFacts(rows=10, metrics=[exact])


def published_facts(*, draft: bool = False) -> PublishedFacts:
    """Return what was pushed, and how it is served."""
    serving = ServingFacts(target="vLLM", merged=False, adapter_servable=True, command="vllm serve a-base")
    return PublishedFacts(
        repository="acme/support-tools",
        revision="feed" * 10,
        branch="tunemill-draft-1234" if draft else "main",
        url="https://huggingface.co/acme/support-tools/tree/feed",
        serving=serving,
        draft=draft,
    )


def a_report(
    stage: Stage,
    *,
    executed: bool = True,
    tuned: str = "0.9000",
    published: str = "",
    key: str = "0123456789abcdef",
    draft: bool = False,
) -> str:
    """Return the termination message of a stage that has succeeded."""
    facts: dict[str, Any] = {
        Stage.PREPARE: {"prepared": prepared_facts(key)},
        Stage.TRAIN: {"trained": trained_facts()},
        Stage.EVALUATE: {"evaluation": evaluation_facts(tuned, published=published)},
        Stage.PUBLISH: {"published": published_facts(draft=draft)},
    }[stage]
    report = StageReport(stage=stage, key=key, executed=executed, started_at=NOON, finished_at=at(1), **facts)
    return report.termination_message()


def a_failure_report(stage: Stage, reason: Reason, message: str = "it went wrong") -> str:
    """Return the termination message of a stage that has failed."""
    report = StageReport(stage=stage, started_at=NOON, finished_at=at(1), failure=failure_of(reason, message))
    return report.termination_message()


def texts_in(value: Any) -> Iterator[str]:
    """Yield all texts of a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from texts_in(item)

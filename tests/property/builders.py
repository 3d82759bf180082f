"""Builders of the engine's inputs: objects, reports, facts."""

from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage, StageReport, failure_of
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
    """Return the time this many seconds after noon."""
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

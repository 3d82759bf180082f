"""Reports of simulated stages, for tests and benchmarks with simulated pods."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import (
    DatasetFacts,
    EvaluationFacts,
    MetricFacts,
    PreparedFacts,
    PublishedFacts,
    ServingFacts,
    SuiteDataFacts,
    TrainedFacts,
)

_BEGAN = datetime(2026, 11, 21, 12, tzinfo=UTC)


def prepared_facts(key: str = "0123456789abcdef", suites: Sequence[SuiteDataFacts] = ()) -> PreparedFacts:
    """Return the facts of prepare for a hundred rows."""
    data = DatasetFacts(format="OpenAI", rows=100, train_rows=90, evaluation_rows=10)
    return PreparedFacts(
        key=key,
        base_model_revision="c0ffee" * 6,
        dataset_digest="sha256:d1",
        tokenizer_mode="Extend",
        dataset=data,
        suites=[*suites],
    )


def trained_facts() -> TrainedFacts:
    """Return the facts of a short training."""
    return TrainedFacts(steps=12, loss="0.2347", train_seconds=60, device="cpu", adapter="s3://team-a-data/x/adapter")


def evaluation_facts(tuned: str = "0.9000", base: str = "0.1000", published: str = "") -> EvaluationFacts:
    """Return the evaluation of ten rows."""
    exact = MetricFacts(name="exact_match", base=base, tuned=tuned, published=published, cases=10)
    return EvaluationFacts(rows=10, metrics=[exact])


def published_facts(*, draft: bool = False) -> PublishedFacts:
    """Return the facts of a publication and its serving command."""
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
    suites: Sequence[SuiteDataFacts] = (),
    finished_at: datetime = _BEGAN + timedelta(seconds=1),
) -> str:
    """Return the termination message of a stage that has succeeded."""
    facts: dict[Stage, dict[str, Any]] = {
        Stage.PREPARE: {"prepared": prepared_facts(key, suites)},
        Stage.TRAIN: {"trained": trained_facts()},
        Stage.EVALUATE: {"evaluation": evaluation_facts(tuned, published=published)},
        Stage.PUBLISH: {"published": published_facts(draft=draft)},
    }
    times = {"started_at": _BEGAN, "finished_at": finished_at}
    return StageReport(stage=stage, key=key, executed=executed, **times, **facts[stage]).termination_message()

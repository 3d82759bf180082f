"""Any reports of stages fit into a termination message of 4096 bytes."""

from hypothesis import example, given
from hypothesis import strategies as st
from property.builders import NOON
from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.evaluation import Metric
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage, StageFailure, StageReport, reports_in, termination_message
from tunemill_api.status import EvaluationFacts, MetricFacts, TrainedFacts

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6000)
uris = st.integers(0, 1400).map(lambda size: f"s3://team-a/{'é' * (size // 2)}/adapter")
shares = st.sampled_from(["", "0.1234", "1.0000"])
metrics = st.builds(
    lambda share, cases: [MetricFacts(name=m, base=share, tuned=share, published=share, cases=cases) for m in Metric],
    shares,
    st.integers(0, 10**7),
)
evaluations = st.builds(
    EvaluationFacts, rows=st.integers(0, 10**7), metrics=metrics, report=uris.map(lambda uri: uri + "/report.json")
)
trainings = st.builds(
    TrainedFacts,
    steps=st.integers(1, 10**6),
    loss=st.just("0.1234"),
    train_seconds=st.integers(0, 10**7),
    device=st.sampled_from(["cpu", "NVIDIA H200"]),
    adapter=uris,
)
failures = st.builds(StageFailure, reason=st.sampled_from(Reason), message=texts, remedy=texts)


# Every character at which Python breaks a line and JSON does not.
BREAKS = "".join(mark for mark in map(chr, range(0x20, 0x2100)) if len(f"a{mark}b".splitlines()) > 1)


def a_train_report(facts: TrainedFacts) -> StageReport:
    """Return the report of a successful train."""
    return StageReport(stage=Stage.TRAIN, key="0" * 16, executed=True, started_at=NOON, finished_at=NOON, trained=facts)


@given(trainings, evaluations)
def test_two_successful_reports_fit(trained: TrainedFacts, judged: EvaluationFacts) -> None:
    """With every metric and the longest URIs of S3; only URIs may be omitted."""
    train = a_train_report(trained)
    evaluate = StageReport(
        stage=Stage.EVALUATE, key="1" * 16, executed=True, started_at=NOON, finished_at=NOON, evaluation=judged
    )
    message = termination_message([train, evaluate])
    assert len(message.encode()) <= TERMINATION_LOG_BYTES
    first, second = reports_in(message)
    assert first.trained
    assert second.evaluation
    assert second.evaluation.metrics == judged.metrics
    assert first.trained.model_copy(update={"adapter": trained.adapter}) == trained
    if len(trained.adapter) + len(judged.report) < 900:
        assert (first, second) == (train, evaluate)


@given(trainings, failures)
@example(
    TrainedFacts(steps=1, loss="0.1234", train_seconds=1, device="cpu", adapter="s3://team-a/adapter"),
    StageFailure(reason=Reason.INVALID_SPEC, message=BREAKS, remedy=BREAKS),
)
def test_a_failure_and_an_earlier_report_fit(trained: TrainedFacts, failure: StageFailure) -> None:
    """The facts of train are complete, and the failure keeps its reason and both ends of its message."""
    train = a_train_report(trained)
    evaluate = StageReport(stage=Stage.EVALUATE, started_at=NOON, finished_at=NOON, failure=failure)
    message = termination_message([train, evaluate])
    assert len(message.encode()) <= TERMINATION_LOG_BYTES
    first, second = reports_in(message)
    assert first == train
    assert second.failure
    assert second.failure.reason == failure.reason


@given(failures)
def test_one_failure_fits(failure: StageFailure) -> None:
    """Long remedies and messages are shortened."""
    report = StageReport(stage=Stage.PREPARE, started_at=NOON, finished_at=NOON, failure=failure)
    message = report.termination_message()
    assert len(message.encode()) <= TERMINATION_LOG_BYTES
    assert [found.stage for found in reports_in(message)] == [Stage.PREPARE]


@given(texts)
def test_an_invalid_report_is_ignored(text: str) -> None:
    """Text that only looks like JSON, or the log of the container."""
    assert list(reports_in(text)) == []
    assert list(reports_in("{" + text)) == []

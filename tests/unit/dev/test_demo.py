"""The output of the demo, derived from the status."""

import io
from datetime import UTC, datetime, timedelta

from rich.console import Console
from tunemill_api.status import (
    EvaluationFacts,
    FineTuneStatus,
    MetricFacts,
    Phase,
    PublishedFacts,
    StageState,
    StageStatus,
    TrainedFacts,
    TrainerMetric,
    TrainerStatus,
)
from tunemill_dev.demo.results import stages_run, summary
from tunemill_dev.demo.view import RunView, plain, stage_lines, waiting_for
from tunemill_dev.kubectl import documents

NOON = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """Return a time after noon."""
    return NOON + timedelta(seconds=seconds)


def done(name: str, start: float, end: float, *, executed: bool = True) -> StageStatus:
    """Return a finished stage."""
    return StageStatus(
        name=name, state=StageState.SUCCEEDED, executed=executed, started_at=at(start), finished_at=at(end)
    )


def ended(*stages: StageStatus) -> FineTuneStatus:
    """Return the status of a published run."""
    return FineTuneStatus(
        phase=Phase.SUCCEEDED,
        stages=list(stages),
        evaluation=EvaluationFacts(
            rows=48,
            metrics=[
                MetricFacts(name="exact_match", base="0.0000", tuned="0.9583"),
                MetricFacts(name="parallel_accuracy", base="", tuned=""),
            ],
        ),
        published=PublishedFacts(repository="acme/support-tools", revision="c0ffee", url="http://hub/acme"),
    )


NEW = FineTuneStatus()
FIRST = ended(done("prepare", 0, 9), done("train", 10, 40.26), done("evaluate", 41, 55), done("publish", 56, 70))


def training(percent: int | None, loss: str = "0.41") -> FineTuneStatus:
    """Return the status of a run that started to train ten seconds after noon."""
    reported = TrainerStatus(
        progress_percentage=percent, estimated_remaining_seconds=75, metrics=[TrainerMetric(name="loss", value=loss)]
    )
    running = StageStatus(name="train", state=StageState.RUNNING, started_at=at(10))
    return FineTuneStatus(phase=Phase.TRAINING, stages=[done("prepare", 0, 9), running], trainer_status=reported)


def test_the_summary_has_seconds_scores_and_executed_stages():
    """Machine-readable: seconds with one decimal, scores as numbers, without metrics that have no cases."""
    assert summary(FineTuneStatus(), FIRST, setup_seconds=12.34, total_seconds=90.06) == {
        "phase": "Succeeded",
        "seconds": {"setup": 12.3, "prepare": 9.0, "train": 30.3, "evaluate": 14.0, "publish": 14.0, "total": 90.1},
        "evaluation": {"base": {"exact_match": 0.0}, "tuned": {"exact_match": 0.9583}, "rows": 48},
        "published": {"repository": "acme/support-tools", "revision": "c0ffee"},
        "stagesRun": {"prepare": 1, "train": 1, "evaluate": 1, "publish": 1},
    }


def test_after_an_edit_only_its_stages_are_counted():
    """Stages of the first run stay in the status, but are neither counted nor timed again."""
    again = ended(*FIRST.stages[:3], done("publish", 100, 110))
    assert stages_run(FIRST, again) == {"prepare": 0, "train": 0, "evaluate": 0, "publish": 1}
    seconds = summary(FIRST, again, 0.0, 12.0)["seconds"]
    assert (seconds["train"], seconds["publish"]) == (0.0, 10.0)


def test_a_stage_with_an_existing_output_is_not_counted():
    """Its pod found the output in the workspace."""
    found = ended(done("train", 100, 101, executed=False))
    assert stages_run(FineTuneStatus(), found)["train"] == 0


def test_a_failed_run_has_a_summary_too():
    """Without scores and publication; the file is still written."""
    failed = FineTuneStatus(phase=Phase.FAILED, stages=[StageStatus(name="prepare", state=StageState.FAILED)])
    result = summary(FineTuneStatus(), failed, 1.0, 2.0)
    assert (result["phase"], result["published"], result["evaluation"]["rows"]) == ("Failed", None, 0)


def test_a_running_stage_shows_percent_loss_time_left_and_seconds():
    """The information of `kubectl get fcft -w`."""
    (line,) = [line for line in stage_lines(NEW, training(45), at(40)) if line.name == "train"]
    assert plain(line) == "▸ train     45 %   30.0 s  loss 0.41, 1:15 left"


def test_a_stage_without_a_pod_does_not_show_the_progress_of_another_stage():
    """The progress of train stays in the status until evaluate reports."""
    waiting = StageStatus(name="evaluate", state=StageState.RUNNING)
    status = FineTuneStatus(stages=[waiting], trainer_status=training(100).trainer_status)
    (line,) = [line for line in stage_lines(NEW, status, at(40)) if line.name == "evaluate"]
    assert (line.percent, line.text) == (None, "")


def test_a_finished_stage_shows_its_result():
    """For train the steps and the decrease of the loss."""
    trained = TrainedFacts(
        steps=120, loss="0.05", first_loss="3.1", train_seconds=30, device="cpu", adapter="s3://x/adapter"
    )
    line = stage_lines(NEW, FIRST.model_copy(update={"trained": trained}), at(80))[1]
    assert line.text == "120 steps, loss 3.1 → 0.05"


def test_a_stage_unaffected_by_an_edit_is_shown_as_kept():
    """After an edit of the repository, only publish has a time and a result."""
    again = ended(*FIRST.stages[:3], done("publish", 100, 110))
    lines = stage_lines(FIRST, again, at(120))
    assert [(line.text, line.seconds) for line in lines[:3]] == [("kept", None)] * 3
    assert (lines[3].text, lines[3].seconds) == ("acme/support-tools at c0ffee", 10.0)


def test_a_log_line_is_written_only_after_a_change():
    """Without a terminal: one line per fifth of a stage."""
    written = io.StringIO()
    with RunView(Console(file=written, width=200), NEW) as view:
        for percent in (1, 2, 3, 25, 26, 39, 41):
            view.show(training(percent))
        view.show(FIRST)
    lines = [line[:16].split() for line in written.getvalue().splitlines()]
    assert [line[2] for line in lines if line[:2] == ["▸", "train"]] == ["1", "25", "41"]
    assert [line[1] for line in lines if line[0] == "✓"] == ["prepare", "train", "evaluate", "publish"]


def test_a_blocking_condition_is_shown_only_while_no_stage_runs():
    """A message such as `pulling the image` is outdated once the container runs."""
    assert waiting_for(training(10)) == ""


def test_a_stream_of_json_objects_is_split():
    """An incomplete object waits for the rest."""
    assert documents('{"a": 1}\n{"b": {"c": 2}}\n{"d"') == ([{"a": 1}, {"b": {"c": 2}}], '{"d"')

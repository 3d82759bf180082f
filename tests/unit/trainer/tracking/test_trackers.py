"""Trackers get everything in order, and neither a slow nor a failing one stops a stage."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from property.builders import a_spec
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_trainer.tracking.run import TrackedRun
from tunemill_trainer.tracking.trackers import End, Metrics, Trackers


class Recording:
    """A tracker that records what it gets."""

    name = "Recording"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.files: list[Path] = []
        self.ended: list[End] = []

    def open(self) -> None:
        """Do nothing."""

    def log(self, metrics: Sequence[Metrics]) -> None:
        """Record the steps."""
        self.steps += [each.step for each in metrics]

    def add_file(self, path: Path) -> None:
        """Record the file."""
        self.files.append(path)

    def close(self, end: End) -> None:
        """Record the end."""
        self.ended.append(end)


class Failing(Recording):
    """A tracker that fails with each request."""

    name = "Failing"

    def __init__(self, *, opens: bool) -> None:
        super().__init__()
        self.requests = 0
        self._opens = opens

    def open(self) -> None:
        """Fail."""
        if not self._opens:
            raise ConnectionError("refused")

    def log(self, metrics: Sequence[Metrics]) -> None:
        """Fail."""
        self.requests += 1
        raise ConnectionError("refused")

    def add_file(self, path: Path) -> None:
        """Fail."""
        self.log([])


def test_everything_is_sent_in_order_before_the_block_ends() -> None:
    """Metrics of all steps, then the files; the run ends as the stage does."""
    tracker = Recording()
    with Trackers([tracker], last=True) as trackers:
        for step in range(500):
            trackers.log({"loss": 1.0}, step)
        trackers.add_file(Path("report.json"))
    assert (tracker.steps, tracker.files, tracker.ended) == ([*range(500)], [Path("report.json")], [End.FINISHED])


def test_the_next_stage_continues_a_run_unless_this_one_failed() -> None:
    """Train leaves the run open for evaluate."""
    tracker = Recording()
    with Trackers([tracker]):
        pass
    with pytest.raises(ValueError, match="out of memory"), Trackers([tracker]):
        raise ValueError("out of memory")
    assert tracker.ended == [End.CONTINUED, End.FAILED]


def test_a_failing_tracker_stops_neither_the_stage_nor_the_other_trackers(caplog: pytest.LogCaptureFixture) -> None:
    """It gets nothing more after some failures, and the log names it."""
    works, fails, unopened = Recording(), Failing(opens=True), Failing(opens=False)
    with caplog.at_level(logging.WARNING), Trackers([works, fails, unopened]) as trackers:
        for number in range(20):
            trackers.add_file(Path(f"{number}.json"))
    assert len(works.files) == 20
    assert (fails.requests, fails.ended) == (3, [])
    assert (unopened.requests, unopened.ended) == (0, [])
    assert "Failing: cannot open the run: ConnectionError: refused" in caplog.text


def test_a_tracker_that_hangs_does_not_keep_a_stage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end waits for a limited time, and a full queue drops what comes later."""
    monkeypatch.setattr("tunemill_trainer.tracking.trackers._CLOSE_SECONDS", 0.2)
    monkeypatch.setattr("tunemill_trainer.tracking.trackers._WAITING", 3)
    released = threading.Event()

    class Hanging(Recording):
        name = "Hanging"

        def open(self) -> None:
            released.wait(30)

    with caplog.at_level(logging.WARNING), Trackers([Hanging()]) as trackers:
        for step in range(10):
            trackers.log({"loss": 1.0}, step)
    released.set()
    assert "Hanging is too slow" in caplog.text
    assert "Hanging did not take all metrics and files" in caplog.text


def test_a_run_has_one_identity_in_all_its_stages_and_no_location_in_its_settings() -> None:
    """Runs of two objects, two clusters or two ids differ."""
    tokens = [f"<token-{number}>" for number in range(60)]
    spec = FineTuneSpec.model_validate(a_spec(tokenizer={"addTokens": tokens}))
    runs = [
        RunSpec(namespace=namespace, name="tools", run_id=run_id, spec=spec, cluster=cluster)
        for namespace, run_id, cluster in (("a", "r1", ""), ("b", "r1", ""), ("a", "r2", ""), ("a", "r1", "east"))
    ]
    found = [TrackedRun.of(run) for run in runs]
    assert len({each.digest for each in found}) == len(runs)
    assert TrackedRun.of(runs[0]).digest == found[0].digest
    assert found[0].settings["training.batchSize"] == str(spec.training.batch_size)
    assert not [value for value in found[0].settings.values() if spec.dataset.uri in value]
    assert max(map(len, found[0].settings.values())) == 500

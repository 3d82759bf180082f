"""Preference training: which adapter is kept, what is reported, and what an attempt resumes from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tunemill_api.failures import Reason
from tunemill_api.status import TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.mistakes import Pair
from tunemill_trainer.learn.checkpoints import Checkpoint
from tunemill_trainer.stages import preference
from tunemill_trainer.stages.preference import FEWEST_PAIRS, Begun, Quality

TRAINED = TrainedFacts(steps=30, loss="0.5", train_seconds=10, device="cpu", adapter="s3://team/adapter")
BEFORE = Quality(cases=40, right=20, loss=0.5)


def begun(pairs: int = FEWEST_PAIRS) -> Begun:
    """Return the state with this number of pairs."""
    return Begun(TRAINED, 100, BEFORE, [Pair([1, 2], [3, 4], [5, 4])] * pairs)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """The output of the supervised training."""
    (tmp_path / "output" / "adapter").mkdir(parents=True)
    (tmp_path / "output" / "adapter" / "weights").write_text("supervised")
    return tmp_path / "output"


def finished(output: Path, monkeypatch: pytest.MonkeyPatch, state: Begun, train: Any, after: Quality) -> TrainedFacts:
    """Run the phase with this training and this quality of its result."""
    monkeypatch.setattr(preference, "_train", train)
    monkeypatch.setattr(preference, "_measure", lambda *_: after)
    folder = output.with_name("preferred")
    folder.mkdir()
    setting: Any = SimpleNamespace(context=SimpleNamespace(folder=lambda _name: folder))
    return preference.finish(setting, state, output)


def train(_setting: Any, _begun: Begun, _adapter: Path, folder: Path) -> tuple[Any, str]:
    """Train nothing, and save another adapter."""
    (folder / "weights").write_text("preferred")
    return SimpleNamespace(steps=5, history=[{"step": 1, "loss": 0.7}]), "1e-05"


@pytest.mark.parametrize(("right", "kept"), [(19, False), (20, False), (21, True)])
def test_the_result_is_kept_only_if_more_answers_are_right(
    output: Path, monkeypatch: pytest.MonkeyPatch, right: int, kept: bool
):
    """Whatever its loss is; both numbers are reported."""
    facts = finished(output, monkeypatch, begun(), train, Quality(40, right, 0.1))
    assert (output / "adapter" / "weights").read_text() == ("preferred" if kept else "supervised")
    assert (output / "preference.jsonl").read_text() == '{"step": 1, "loss": 0.7}\n'
    found = facts.preference
    assert found is not None
    assert (found.kept, found.steps, found.learning_rate, found.note) == (kept, 5, "1e-05", "")
    assert (found.exact_before, found.exact_after) == ("0.5000", f"{right / 40:.4f}")
    assert (found.loss_before, found.loss_after) == ("0.5000", "0.1000")
    assert facts.steps == TRAINED.steps


def no_memory(*_: Any) -> Any:
    """Raise an out-of-memory error for a pair."""
    raise StageError(Reason.CUDA_OUT_OF_MEMORY, "a pair does not fit")


@pytest.mark.parametrize(
    ("state", "failing", "note"),
    [
        (begun(FEWEST_PAIRS - 1), train, "fewer than 8 wrong answers"),
        (begun(), no_memory, "a pair does not fit"),
    ],
    ids=["few mistakes", "no memory"],
)
def test_the_supervised_adapter_stays_if_nothing_can_be_trained(
    output: Path, monkeypatch: pytest.MonkeyPatch, state: Begun, failing: Any, note: str
):
    """The run does not fail, and the status has the reason."""
    facts = finished(output, monkeypatch, state, failing, BEFORE)
    assert (output / "adapter" / "weights").read_text() == "supervised"
    assert facts.preference is not None
    assert note in facts.preference.note
    assert (facts.preference.steps, facts.preference.kept, facts.preference.exact_after) == (0, False, "")


def test_other_failures_end_the_attempt(output: Path, monkeypatch: pytest.MonkeyPatch):
    """A request to stop, for example."""

    def stopped(*_: Any) -> Any:
        raise StageError(Reason.INTERRUPTED, "stopped")

    with pytest.raises(StageError, match="stopped"):
        finished(output, monkeypatch, begun(), stopped, BEFORE)


def test_an_attempt_resumes_from_the_pairs(output: Path, tmp_path: Path):
    """The output of the supervised training is in the checkpoint, too."""
    folder = tmp_path / "checkpoint-31"
    folder.mkdir()
    checkpoint = Checkpoint(folder, 31, 10.0)
    assert not preference.is_begun(checkpoint)
    output.rename(folder / "output")
    begun().save(folder)
    assert preference.is_begun(checkpoint)
    found = preference.resume(checkpoint, output)
    assert (output / "adapter" / "weights").read_text() == "supervised"
    assert (found.pairs, found.before, found.prompts) == (begun().pairs, BEFORE, 100)
    assert found.trained == TRAINED.model_copy(update={"resumed_from_step": 30})

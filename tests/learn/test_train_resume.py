"""A training that is stopped, killed or loses checkpoints resumes to the same result, bit for bit."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from learn.training import Ended, World, a_world, prepare, run_spec, run_stage
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny.cached import cached_base

STEPS, ROWS = 24, 96
"""Two epochs of twelve steps: a run that is resumed in the second one has to draw the same order again."""


@dataclass
class Training:
    """One training in several attempts, each a separate pod with an empty disk."""

    world: World
    run: RunSpec
    folder: Path
    attempts: int = 0

    @property
    def key(self) -> str:
        """The key of the adapter."""
        return keys.train_key(self.run.prepared.key, self.run.spec)

    def attempt(self, watch: Callable[[str], int | None] = lambda _line: None) -> Ended:
        """Run the stage until it ends or `watch` ends it."""
        self.attempts += 1
        return run_stage(Stage.TRAIN, self.world, self.run, self.folder / f"pod-{self.attempts}", watch=watch)

    def history(self) -> list[dict]:
        """Return the log by step."""
        output = self.folder / "output"
        self.world.workspace().fetch(Stage.TRAIN, self.key, output)
        return [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()]

    def objects(self) -> list[str]:
        """Return the names below the training's key."""
        listed = self.world.s3().list_objects_v2(Bucket=self.world.bucket, Prefix=f"tunemill/train/{self.key}/")
        return [item["Key"] for item in listed.get("Contents", [])]

    def remove(self, ending: str) -> int:
        """Remove the objects below the training's key with this suffix, and return how many."""
        names = [name for name in self.objects() if name.endswith(ending)]
        for name in names:
            self.world.s3().delete_object(Bucket=self.world.bucket, Key=name)
        return len(names)


@contextmanager
def a_training(folder: Path) -> Iterator[Training]:
    """Start a world with a prepared training of 24 steps, and a checkpoint every fifth; the weights are random."""
    base = cached_base("gemma2", steps=0)
    with a_world(folder, base) as world:
        facts = prepare(world, base, folder / "prepared", extend=True, count=ROWS)
        spec = world.spec(epochs=2, checkpoint={"everySteps": 5, "keep": 2})
        yield Training(world, run_spec(spec, facts), folder)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """A training that has not started."""
    with a_training(tmp_path) as begun:
        yield begun


@dataclass(frozen=True)
class Finished:
    """An undisturbed training, its first attempt, and its log."""

    training: Training
    first: Ended
    history: list[dict]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """An undisturbed run."""
    with a_training(tmp_path_factory.mktemp("undisturbed")) as training:
        ended = training.attempt()
        assert ended.code == 0, ended.log
        history = training.history()
        assert [entry["step"] for entry in history] == list(range(1, STEPS + 1))
        yield Finished(training, ended, history)


def losses(history: list[dict]) -> dict[int, tuple[float, float]]:
    """Return loss and gradient norm of every step."""
    return {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history}


def at_checkpoint(step: int, number: int) -> Callable[[str], int | None]:
    """Return a watch that sends a signal when the checkpoint of a step is in the workspace."""
    return lambda line: number if f"the checkpoint of step {step} to" in line else None


def stopped(training: Training, step: int) -> Ended:
    """Send SIGTERM at a checkpoint: the pod must save another one and end with exit code 75."""
    ended = training.attempt(at_checkpoint(step, signal.SIGTERM))
    assert ended.code == 75, ended.log
    assert ended.report.failure.reason == Reason.INTERRUPTED
    return ended


def killed(training: Training, step: int) -> Ended:
    """Send SIGKILL at a checkpoint: there is no report."""
    ended = training.attempt(at_checkpoint(step, signal.SIGKILL))
    assert ended.code == -signal.SIGKILL
    assert ended.report is None
    return ended


@pytest.mark.parametrize(
    "attempts",
    [[(stopped, 5), (killed, 15)], [(killed, 5), (stopped, 15), (killed, 20), (killed, STEPS)]],
    ids=["stopped first", "killed first"],
)
def test_an_interrupted_run_resumes_to_the_same_losses(
    training: Training, undisturbed: Finished, attempts: list[tuple[Callable[[Training, int], Ended], int]]
) -> None:
    """Proves that a pod that is stopped or killed, in either epoch, costs no more than the steps since its checkpoint.

    Each pod goes on from the checkpoint of the one before, also a pod that itself was resumed, and one that was killed
    after the last step.
    """
    reached = 0
    for disturb, step in attempts:
        ended = disturb(training, step)
        assert not [at for at in range(1, reached + 1) if f"the checkpoint of step {at} to" in ended.log], "not resumed"
        reached = step
    resumed = training.attempt()
    assert resumed.code == 0, resumed.log
    assert resumed.report.trained.resumed_from_step >= reached
    assert losses(training.history()) == losses(undisturbed.history)


def test_an_incomplete_checkpoint_is_skipped(training: Training, undisturbed: Finished) -> None:
    """One without a file or its manifest is never resumed from."""
    training.attempt(at_checkpoint(10, signal.SIGKILL))
    whole = [name for name in training.objects() if name.endswith("/manifest.json")]
    assert whole
    assert training.remove("/optimizer.pt") >= 1

    resumed = training.attempt()
    assert resumed.code == 0, resumed.log
    assert "skipping the damaged checkpoint" in resumed.log
    assert resumed.report.trained.resumed_from_step == 0
    assert losses(training.history()) == losses(undisturbed.history)


def test_a_finished_training_is_not_rerun_and_leaves_no_checkpoint(undisturbed: Finished) -> None:
    """The second pod exits, and the checkpoints are removed."""
    training, first = undisturbed.training, undisturbed.first
    assert not [name for name in training.objects() if "/checkpoints/" in name]
    second = training.attempt()
    assert (first.report.executed, second.report.executed) == (True, False)
    assert second.report.trained == first.report.trained

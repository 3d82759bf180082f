"""The parts of the GPU check, on the CPU with small models: the same code as on a GPU."""

from pathlib import Path

import pytest
from tunemill_dev.gpu_check.__main__ import parts
from tunemill_trainer.gpu_check.command import Result, run_parts

NAMES = {part.name: part for part in parts("cpu", small=True)}


def run(folder: Path, *names: str) -> list[Result]:
    """Run parts by name, with a longer time limit, as the machine may be busy."""
    return list(run_parts([NAMES[name] for name in names], 1200, folder))


def test_training_is_measured_like_on_a_gpu(tmp_path: Path) -> None:
    """The real stages run offline on random weights, and their reports are used."""
    (speed,) = run(tmp_path, "speed, small model")
    assert (speed.status, speed.reason) == ("passed", "")
    assert speed.figures["tokensPerSecond"] > 0
    assert speed.figures["evaluatedTokensPerSecond"] > 0
    assert speed.figures["estimatedLeastMib"] > 600
    assert not list(tmp_path.glob("*/*-*")), "nothing but the base model is left"


@pytest.mark.long
def test_training_is_resumed_like_on_a_gpu(tmp_path: Path) -> None:
    """A training stopped by a signal resumes; stages in pods are tested in test_train_resume."""
    (resumed,) = run(tmp_path, "resume after SIGTERM")
    assert (resumed.status, resumed.reason) == ("passed", "")
    assert resumed.figures["resumed from step"] == 3

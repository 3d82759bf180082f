"""Several ranks train and evaluate as one does: gloo on the CPU, a process per rank."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from learn.group import in_ranks
from learn.tasks import Task, a_task, adapter
from tunemill_api.finetune import Quantization
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.learn.plan import Plan
from tunemill_trainer.process.ranks import Ranks

METHODS = {
    "LoRA": (adapter("LoRA", lora={"dropout": "0"}), Quantization.NONE),
    "AdaLoRA": (adapter("AdaLoRA", adalora={"dropout": "0"}), Quantization.NONE),
    "IA3": (adapter("IA3"), Quantization.NONE),
    "Full": (adapter("Full"), Quantization.NONE),
    "LoRA on NF4": (adapter("LoRA", lora={"dropout": "0"}), Quantization.NF4),
}
STEPS = 3


@dataclass(frozen=True)
class Trained:
    """What a rank has after a training.

    Attributes:
        figures: loss, gradient norm and token accuracy of each step.
        held_out: the held-out loss at the end.
        weights: the trained parameters by name.
    """

    figures: list[tuple[float, float, float]]
    held_out: float
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base with random weights whose vocabulary is extended by the tags."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


def train_all(ranks: Ranks, task: Task, folder: Path, batch: int) -> dict[str, Trained]:
    """Train a few steps with each method."""
    trained = {}
    for name, (method, quantization) in METHODS.items():
        result = task.train(
            folder / name / str(ranks.index),
            method,
            task.model(quantization),
            made=Plan(STEPS, 1, 256),
            held_out=True,
            ranks=ranks,
            batchSize=batch,
            maxSteps=STEPS,
            learningRate="1e-3",
        )
        assert result.best
        weights = {name: each.detach() for name, each in result.model.named_parameters() if each.requires_grad}
        figures = [(entry["loss"], entry["grad_norm"], entry["mean_token_accuracy"]) for entry in result.history]
        trained[name] = Trained(figures, result.best.loss, weights)
    return trained


@pytest.mark.parametrize(("count", "batch"), [(2, 16), (3, 2)], ids=["two ranks", "a rank without a row"])
def test_several_ranks_train_as_one(raw: Task, tmp_path: Path, count: int, batch: int) -> None:
    """Proves for each method that losses, gradient norms, metrics and weights do not depend on the number of ranks."""
    alone = train_all(Ranks(), raw, tmp_path / "alone", batch)
    together = in_ranks(count, train_all, raw, tmp_path / "together", batch)
    for name, expected in alone.items():
        for trained in (each[name] for each in together):
            for one, other in zip(trained.figures, expected.figures, strict=True):
                assert one == pytest.approx(other, rel=1e-5), name
            assert trained.held_out == pytest.approx(expected.held_out, rel=1e-5), name
            assert trained.weights.keys() == expected.weights.keys()
            for parameter, tensor in trained.weights.items():
                torch.testing.assert_close(tensor, expected.weights[parameter], rtol=1e-5, atol=1e-5, msg=name)
        for parameter, tensor in together[0][name].weights.items():
            assert all(torch.equal(tensor, each[name].weights[parameter]) for each in together), "the ranks drift apart"

"""The tasks of the ranks in `test_ranks.py`. A forked rank has to import them from outside a test module."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from learn.tasks import Task, adapter
from tunemill_api.finetune import Quantization
from tunemill_trainer.learn.memory_settings import Checkpointing
from tunemill_trainer.learn.plan import Plan
from tunemill_trainer.process.ranks import PeerLost, Ranks

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


def train_with_a_small_device(ranks: Ranks, task: Task, folder: Path) -> tuple[list[float], Checkpointing, int]:
    """Train; in rank 1, no pass fits unless every layer is recomputed. Return losses, settings and failed passes."""
    model, failed = task.model(), []

    def fail(*_: object) -> None:
        if ranks.index == 1 and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(fail)
    method = adapter("LoRA", lora={"dropout": "0"})
    result = task.train(folder / str(ranks.index), method, model, made=Plan(STEPS, 1), ranks=ranks, maxSteps=STEPS)
    return [entry["loss"] for entry in result.history], result.memory_settings.checkpointing, len(failed)


def wait_for_a_rank_that_hangs(ranks: Ranks, seconds: float) -> str:
    """Start an exchange in which rank 1 does not take part; return the error of the others."""
    if ranks.index == 1:
        time.sleep(seconds)
        return ""
    try:
        ranks.sum(torch.ones(3))
    except PeerLost as error:
        return error.message
    return "the exchange took place"

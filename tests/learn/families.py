"""Tiny models of the real architectures with random weights, and the results of a forward pass."""

import random
from typing import Any

import torch
import trl.kernels.chunked_logprob as of_trl
from transformers import AutoConfig, AutoModelForCausalLM
from tunemill_trainer.learn import loss, passes

CPU = torch.device("cpu")
WINDOW = 8
LENGTHS = (30, 27, 23, 25)
"""Longer than the window; padding sees a token of its row even so, or the reference of Gemma 2 is no number."""
OWN_SETTINGS: dict[str, dict[str, object]] = {
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "granite": {"logits_scaling": 4.0},
}


def a_model(family: str, dtype: torch.dtype) -> Any:
    """A real architecture with random weights: grouped queries, and a sliding window if the family has one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **OWN_SETTINGS.get(family, {}),
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype).train()


def some_rows(lengths: tuple[int, ...] = LENGTHS) -> list[passes.Row]:
    """Rows of random tokens, of which the first five are unsupervised."""
    draw = random.Random(0)
    ids = [[draw.randrange(5, 128) for _ in range(length)] for length in lengths]
    return [{"input_ids": row, "labels": [-100] * min(5, len(row)) + row[5:]} for row in ids]


def computed(model: Any, batch: passes.Pass, score: loss.Score = loss.score_at_once) -> tuple[float, int, torch.Tensor]:
    """The loss, the number of right tokens and the gradient of a pass."""
    model.zero_grad()
    scores = score(model, batch)
    scores.loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return float(scores.loss.detach()), int(scores.right), gradient


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative distance of two vectors."""
    return float((one - other).norm() / other.norm())


def both_losses(family: str) -> tuple[tuple[float, int, torch.Tensor], tuple[float, int, torch.Tensor]]:
    """Results of the loss for CPUs and of that for GPUs, with three tiles, the last of them smaller."""
    loss._VOCABULARY_TILE = 48
    model = a_model(family, torch.float32)
    batch = passes.make(some_rows((12, 9)), CPU, padded=True)
    return computed(model, batch), computed(model, batch, loss.score_in_tiles)


def both_losses_with_kernels(families: list[str]) -> list[Any]:
    """The same with TRL's Triton kernels, in a process that has TRITON_INTERPRET in its environment."""
    of_trl._use_triton = lambda _device: True
    return [[(*found[:2], found[2].tolist()) for found in both_losses(family)] for family in families]

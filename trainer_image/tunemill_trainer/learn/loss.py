"""The loss on supervised tokens, for which the output head sees no other token: most of a row is not supervised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from tunemill_trainer.learn.new_rows import LogProbs
from tunemill_trainer.learn.passes import Pass

_VOCABULARY_TILE = 32_768
"""Logits per token that are held at once on a GPU; TRL's own figure."""
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""How configurations call what logits are multiplied by."""


@dataclass(frozen=True)
class Scores:
    """What a forward pass says about its supervised tokens; both stay on the device.

    Attributes:
        loss: the sum of their losses; carries the gradient.
        right: how many of them are the model's first choice.
    """

    loss: torch.Tensor
    right: torch.Tensor


Score = Callable[[Any, Pass], Scores]


def score_for(device: torch.device) -> Score:
    """Return the function that scores passes on a device."""
    return score_in_tiles if device.type == "cuda" else score_at_once


def score_at_once(model: Any, batch: Pass) -> Scores:  # noqa: ANN401 - transformers ships no types
    """Score with all logits of the supervised tokens in memory.

    On a CPU the other function takes five times as long (measured).

    Args:
        model: a causal language model, wrapped by PEFT or not.
        batch: what it computes.
    """
    with _head_sees(model, batch.predicts):
        logits = model(**batch.inputs, use_cache=False).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    right = (logits.detach().argmax(dim=-1) == batch.targets).sum()
    return Scores(cross_entropy(logits, batch.targets, reduction="sum"), right)


def score_in_tiles(model: Any, batch: Pass) -> Scores:  # noqa: ANN401
    """Score with TRL's kernel for GPUs, which never holds all logits at once; arguments are those of `score_at_once`.

    TRL's own forward looks for the supervised tokens on the device, for which the host has to wait.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = model.base_model(**batch.inputs, use_cache=False).last_hidden_state
    head, (softcap, scale) = model.get_output_embeddings(), _after_the_head(model.config.get_text_config())
    log_probabilities, *_, first = LogProbs.apply(
        hidden.flatten(0, 1).index_select(0, batch.predicts),
        head.weight,
        # PEFT's wrapper around rows that are trained has none.
        getattr(head, "bias", None),
        batch.targets,
        1.0,
        _VOCABULARY_TILE,
        softcap,
        scale,
        ("is_top1",),
    )
    return Scores(-log_probabilities.sum(), first.sum())


@contextmanager
def _head_sees(model: Any, positions: torch.Tensor) -> Iterator[None]:  # noqa: ANN401
    """Let the output head see some positions alone; what the model does to the logits stays its own business.

    Args:
        model: a causal language model.
        positions: of all its tokens, flattened; the logits come as one row of them.
    """

    def select(_head: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].flatten(0, 1).index_select(0, positions).unsqueeze(0), *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _after_the_head(config: PretrainedConfig) -> tuple[float | None, float]:
    """Return what a model does to its logits: the bound of their soft cap, if any, and their factor before it."""
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in _SCALES:
        if getattr(config, name, None) is not None:
            return softcap, getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return softcap, 1.0
    # All others divide by it.
    return softcap, scaling if config.model_type == "hyperclovax" else 1.0 / scaling

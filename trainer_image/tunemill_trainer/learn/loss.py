"""The loss on supervised tokens. The output head is applied to these tokens only: most tokens are not supervised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from tunemill_trainer.learn.language_part import without_head
from tunemill_trainer.learn.new_rows import LogProbs
from tunemill_trainer.learn.passes import Pass

_VOCABULARY_TILE = 32_768
"""Logits per token that are in memory at once on a GPU; the value is TRL's default."""
_SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier")
"""The names in model configurations of a factor of the logits."""


@dataclass(frozen=True)
class Scores:
    """The results of a forward pass for its supervised tokens, as tensors on the device.

    Attributes:
        loss: the sum of their losses, with gradient.
        right: how many of them have the highest logit.
    """

    loss: torch.Tensor
    right: torch.Tensor


Score = Callable[[Any, Pass], Scores]


def score_for(device: torch.device) -> Score:
    """Return the scoring function for a device."""
    return score_in_tiles if device.type == "cuda" else score_at_once


def score_at_once(model: Any, batch: Pass) -> Scores:  # noqa: ANN401 - transformers ships no types
    """Compute the loss with all logits of the supervised tokens in memory.

    On a CPU this is five times as fast as `score_in_tiles` (measured).

    Args:
        model: a causal language model, with or without a PEFT adapter.
        batch: the forward pass.
    """
    with _head_sees(model, batch.predicts):
        logits = model(**batch.inputs, use_cache=False).logits[0]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    right = (logits.detach().argmax(dim=-1) == batch.targets).sum()
    return Scores(cross_entropy(logits, batch.targets, reduction="sum"), right)


def score_in_tiles(model: Any, batch: Pass) -> Scores:  # noqa: ANN401
    """Compute the loss with TRL's GPU kernel, which never has all logits in memory. Arguments as in `score_at_once`.

    TRL's own forward method selects the supervised tokens on the device, for which the host has to wait.
    """
    log_probabilities, *_, first = target_figures(model, batch, ("is_top1",))
    return Scores(-log_probabilities.sum(), first.sum())


def target_figures(model: Any, batch: Pass, also: tuple[str, ...]) -> tuple[Any, ...]:  # noqa: ANN401
    """Return figures of the supervised tokens, each as a tensor of shape (targets,), computed with TRL's GPU kernel.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        batch: the forward pass.
        also: the figures to compute besides the log-probability, by TRL's names.

    Returns:
        Log-probability, with gradient, then entropy, log_sum_sq_probs, mean_logits and is_top1; None for those that
        are not in `also`.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = without_head(model)(**batch.inputs, use_cache=False).last_hidden_state
    head, (softcap, scale) = model.get_output_embeddings(), _logit_transform(model.config.get_text_config())
    figures: tuple[Any, ...] = LogProbs.apply(
        hidden.flatten(0, 1).index_select(0, batch.predicts),
        head.weight,
        # PEFT's wrapper for trained rows has no bias attribute.
        getattr(head, "bias", None),
        batch.targets,
        1.0,
        _VOCABULARY_TILE,
        softcap,
        scale,
        also,
    )
    return figures


@contextmanager
def _head_sees(model: Any, positions: torch.Tensor) -> Iterator[None]:  # noqa: ANN401
    """Apply the output head to some positions only. The model still transforms the logits as usual.

    Args:
        model: a causal language model.
        positions: indices into the flattened tokens of the pass. The logits have the shape (1, positions, vocabulary).
    """

    def select(_head: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0].flatten(0, 1).index_select(0, positions).unsqueeze(0), *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _logit_transform(config: PretrainedConfig) -> tuple[float | None, float]:
    """Return the soft cap of a model's logits, or None, and the factor that is applied before it."""
    softcap = getattr(config, "final_logit_softcapping", None)
    for name in _SCALES:
        if getattr(config, name, None) is not None:
            return softcap, getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return softcap, 1.0
    # HyperCLOVA X multiplies by it, all other models divide.
    return softcap, scaling if config.model_type == "hyperclovax" else 1.0 / scaling

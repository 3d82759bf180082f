"""The loss on supervised tokens, for which the output head sees no other token: most of a row is not supervised."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tunemill_trainer.prepared import IGNORED


@dataclass(frozen=True)
class Scores:
    """What a forward pass says about its supervised tokens.

    Attributes:
        loss: the sum of their losses; carries the gradient.
        right: how many of them are the model's first choice.
        tokens: how many there are.
    """

    loss: torch.Tensor
    right: int
    tokens: int


def score(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Scores:
    """Run a model that `trl.trainer.utils.add_fused_lm_head` has seen, as SFTTrainer's has, on a batch.

    Args:
        model: of any kind; wrapped by PEFT or not.
        inputs: input_ids, attention_mask, labels; rows by tokens.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    if labels.device.type == "cuda":
        # TRL's head has a kernel for GPUs that never holds all logits at once.
        outputs = model(**inputs, labels=labels, fused_lm_head=True)
        return Scores(-outputs.log_probs.sum(), int(outputs.is_top1.sum()), int(outputs.label_mask.sum()))
    # On CPUs it scores every token, in slices (measured: five times the time of a whole step with this one).
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORED
    targets = labels[:, 1:][predicts[:, :-1]]
    with _head_sees(model, predicts):
        logits = model(**inputs, use_cache=False).logits[0].float()
    right = int((logits.detach().argmax(dim=-1) == targets).sum())
    return Scores(cross_entropy(logits, targets, reduction="sum"), right, len(targets))


@contextmanager
def _head_sees(model: Any, positions: torch.Tensor) -> Iterator[None]:  # noqa: ANN401 - transformers ships no types
    """Let the output head see some positions alone; what the model does to the logits stays its own business.

    Args:
        model: a causal language model.
        positions: true for those, rows by tokens; the logits come as one row of them.
    """

    def select(_head: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (arguments[0][positions].unsqueeze(0), *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()

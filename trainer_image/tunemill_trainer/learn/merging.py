"""Decides whether an adapter is merged into its base for decoding, which then takes half as many kernels for a token.

Merging rounds the sum of two weights once more. In the number format of the computation that is of the size of what
every other step of it rounds; where it is more, the model that answers would not be the one that was trained. So the
merged model has to give the same log-probabilities, within a bound, or the adapter stays beside its base. A quantised
base is never merged: what is added to its weights would be quantised, too, and small changes would be lost.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel

from tunemill_trainer.process import tracing
from tunemill_trainer.release.merged import merge

BOUNDS = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""By number format, the mean difference of log-probabilities up to which a merged model says the same, in nats.
Measured on 26 layers with random weights: merging makes 1e-6, 0.003 and 0.02 of it, just as much as the format itself
makes of the model in 32 bits."""
_SAMPLES, _TOKENS = 8, 64
"""How many samples are compared, and how many tokens at the end of each."""

_log = logging.getLogger(__name__)


@tracing.step("merge adapter")
def for_decoding(load: Callable[[], Any], samples: Sequence[Sequence[int]], *, quantised: bool) -> tuple[Any, str]:
    """Return a tuned model as it decodes best, and what was done, for the report.

    Args:
        load: returns the tuned model. Called again if merging was not exact enough, which cannot be undone; the first
            one is gone by then.
        samples: token ids of conversations; the shortest are compared.
        quantised: whether the base model is.
    """
    model = load()
    if not isinstance(model, PeftModel):
        return model, "whole model"
    if quantised:
        return model, "unmerged: the base model is quantised"
    compared = sorted(samples, key=len)[:_SAMPLES]
    before = _log_probabilities(model, compared)
    model = merge(model)
    difference = float((_log_probabilities(model, compared) - before).abs().mean())
    figures = f"log-probabilities differ by {difference:.2g} on average"
    bound = BOUNDS[model.dtype]
    if difference <= bound:
        return model, f"merged: {figures}"
    _log.warning("the merged model is not exact enough, the adapter stays unmerged: %s", figures)
    del model
    return load(), f"unmerged: with a merged adapter {figures}, more than {bound:g}"


def _log_probabilities(model: Any, samples: Sequence[Sequence[int]]) -> torch.Tensor:  # noqa: ANN401
    """Return the log-probability of each of the last tokens of the samples, in 32 bits on the CPU."""
    found = []
    for sample in samples:
        ids = torch.tensor([list(sample)], device=model.device)
        first = max(1, len(sample) - _TOKENS)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float()
        found.append(logits.log_softmax(dim=-1).gather(1, ids[0, first:, None])[:, 0].cpu())
    return torch.cat(found)

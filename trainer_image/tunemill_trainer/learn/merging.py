"""Decides whether to merge an adapter into its base model for decoding, which halves the number of kernels per token.

Merging rounds the sum of two weights. This is usually as small as other rounding in the same number format. If it is
larger, the merged model would not behave like the trained one. So the log-probabilities of both are compared, and the
adapter stays unmerged if they differ by more than a bound. An adapter on a quantized base model is never merged: the
sum would be quantized, too, and small updates would be lost.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel

from tunemill_trainer.process import tracing
from tunemill_trainer.release.merged import merge

BOUNDS = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
"""The largest accepted mean difference of log-probabilities in nats, by number format. For 26 layers with random
weights, merging gives 1e-6, 0.003 and 0.02, as much as the number format itself compared with FP32."""
_SAMPLES, _TOKENS = 8, 64
"""The number of compared samples, and of compared tokens at the end of each."""

_log = logging.getLogger(__name__)


@tracing.step("merge adapter")
def for_decoding(load: Callable[[], Any], samples: Sequence[Sequence[int]], *, quantised: bool) -> tuple[Any, str]:
    """Return the tuned model, merged if possible, and a description for the report.

    Args:
        load: loads the tuned model. It is called a second time if the merged model is discarded.
        samples: token ids of conversations; the shortest are compared.
        quantised: whether the base model is quantized.
    """
    model = load()
    if not isinstance(model, PeftModel):
        return model, "full model"
    if quantised:
        return model, "not merged: the base model is quantized"
    compared = sorted(samples, key=len)[:_SAMPLES]
    before = _log_probabilities(model, compared)
    model = merge(model)
    difference = float((_log_probabilities(model, compared) - before).abs().mean())
    figures = f"mean difference of log-probabilities {difference:.2g}"
    bound = BOUNDS[model.dtype]
    if difference <= bound:
        return model, f"merged: {figures}"
    _log.warning("the merged model is not accurate enough, so the adapter stays unmerged: %s", figures)
    del model
    return load(), f"not merged: {figures}, more than {bound:g}"


def _log_probabilities(model: Any, samples: Sequence[Sequence[int]]) -> torch.Tensor:  # noqa: ANN401
    """Return the log-probabilities of the last tokens of the samples, FP32 on the CPU."""
    found = []
    for sample in samples:
        ids = torch.tensor([list(sample)], device=model.device)
        first = max(1, len(sample) - _TOKENS)
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, first - 1 : -1].float()
        found.append(logits.log_softmax(dim=-1).gather(1, ids[0, first:, None])[:, 0].cpu())
    return torch.cat(found)

"""Estimates the memory for generation from a model's configuration: the key-value cache, and the prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ACTIVATIONS = 8
"""Tensors of the hidden size that a layer holds at the same time during the prefill; plus half as many of its
intermediate size."""
_SCORES = 12
"""Bytes per attention score if all are in memory: raw, softcapped, and as 32-bit probabilities."""


@dataclass(frozen=True)
class CacheSize:
    """The memory for one row of a batch, in bytes.

    Attributes:
        token: bytes of the cache per token and layer.
        windows: for each layer with a cache, the most tokens that it keeps; 0 for no limit.
        prompt_token: bytes per prompt token during the prefill.
        score: bytes per pair of prompt tokens during the prefill; 0 if the attention never materialises all scores.
        logits: bytes of the logits for the next token.
    """

    token: int
    windows: tuple[int, ...]
    prompt_token: int
    score: int
    logits: int

    def cache(self, length: int) -> int:
        """Return the bytes of the cache for a row with `length` tokens."""
        return self.token * sum(min(length, window) if window else length for window in self.windows)

    def row(self, prompt: int, length: int) -> int:
        """Return the bytes for a row with `prompt` prompt tokens that grows to `length` tokens."""
        reading = self.cache(prompt) + self.prompt_token * prompt + self.score * prompt**2
        # To grow, a layer's cache is copied.
        writing = self.cache(length) + self.token * length
        return max(reading, writing) + self.logits


def cache_size(model: Any) -> CacheSize:  # noqa: ANN401 - transformers ships no types
    """Return the memory per row for a causal language model of Transformers, in the dtype of its weights."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config, item = model.config.get_text_config(decoder=True), model.dtype.itemsize
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "kv_lora_rank", None):  # multi-head latent attention: Transformers caches the expanded states
        numbers = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    else:
        numbers = 2 * groups * width
    # DynamicCache knows which layers have a sliding window, and which have no cache: they share the keys of another
    # layer, or have a state of fixed size.
    layers = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicLayer)]
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    if isinstance(feed_forward, list):  # one per layer
        feed_forward = max(feed_forward)
    return CacheSize(
        token=numbers * item,
        windows=tuple(_window(layer) for layer in layers),
        prompt_token=item * _ACTIVATIONS * (config.hidden_size + feed_forward // 2),
        score=_SCORES * heads if config._attn_implementation == "eager" else 0,  # noqa: SLF001
        logits=config.vocab_size * (item + 4),
    )


def _window(layer: Any) -> int:  # noqa: ANN401
    return int(layer.sliding_window) if getattr(layer, "is_sliding", False) else 0

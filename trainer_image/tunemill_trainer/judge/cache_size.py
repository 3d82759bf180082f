"""How much memory the answers of a model need, from its configuration: the key-value cache and what a prompt takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ACTIVATIONS = 8
"""Tensors as wide as the hidden states that a layer needs at once while it reads a prompt; and half as many as wide as
its feed-forward part."""
_SCORES = 12
"""Bytes of each attention score where all of them are in memory: as they are, capped, and as 32-bit probabilities."""


@dataclass(frozen=True)
class CacheSize:
    """What one row needs, in bytes.

    Attributes:
        token: bytes of the cache for a token in one layer.
        windows: the layers that keep a cache: how many tokens each keeps at most; 0 for all of them.
        prompt_token: bytes for each token of a prompt while it is read.
        score: bytes for each pair of tokens of a prompt while it is read; 0 where attention never holds all pairs.
        logits: bytes of the logits of the next token.
    """

    token: int
    windows: tuple[int, ...]
    prompt_token: int
    score: int
    logits: int

    def cache(self, length: int) -> int:
        """Return the bytes of the cache for a row of this many tokens."""
        return self.token * sum(min(length, window) if window else length for window in self.windows)

    def row(self, prompt: int, length: int) -> int:
        """Return the bytes for a row whose prompt has `prompt` tokens, and that grows to `length`."""
        reading = self.cache(prompt) + self.prompt_token * prompt + self.score * prompt**2
        # A layer's cache grows by being copied.
        writing = self.cache(length) + self.token * length
        return max(reading, writing) + self.logits


def cache_size(model: Any) -> CacheSize:  # noqa: ANN401 - transformers ships no types
    """Return what a row needs in a causal language model of Transformers, in the number format of its weights."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config, item = model.config.get_text_config(decoder=True), model.dtype.itemsize
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "kv_lora_rank", None):  # Transformers caches what the compressed states are expanded to
        numbers = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    else:
        numbers = 2 * groups * width
    # Transformers' own cache knows which layers slide, and which keep nothing: they use the keys of another layer, or
    # have a state of a fixed size.
    layers = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicLayer)]
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    if isinstance(feed_forward, list):  # a layer each
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

"""The size of the key-value cache, from a model's configuration."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
)
from tunemill_trainer.judge.cache_size import CacheSize, cache_size

WINDOW = 16
SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZE, head_dim=8, sliding_window=WINDOW),
        Gemma3TextConfig(**SIZE, head_dim=16, sliding_window=WINDOW),
        LlamaConfig(**SIZE),
        MistralConfig(**SIZE, sliding_window=WINDOW),
        Qwen2Config(**SIZE, sliding_window=WINDOW, use_sliding_window=False),
    ],
    ids=lambda config: config.model_type,
)
def test_the_cache_size_follows_from_the_configuration(config: PretrainedConfig):
    """With grouped heads, head sizes and sliding windows, the bytes equal those of the cache after a pass."""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for length in (WINDOW // 2, 3 * WINDOW):
        with torch.inference_mode():
            cache = model(input_ids=torch.ones(1, length, dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        estimated = cache_size(model).cache(length)
        # A window of n tokens keeps n - 1 of those that are past.
        assert held <= estimated <= held * WINDOW / (WINDOW - 1)


def test_layers_that_share_a_cache_are_counted_once():
    """Gemma 3n's last layers use the cache of earlier ones."""
    layers = ["full_attention", "sliding_attention"] * 3
    config = Gemma3nTextConfig(**SIZE, head_dim=8, sliding_window=WINDOW, num_kv_shared_layers=2, layer_types=layers)
    model = SimpleNamespace(config=config, dtype=torch.float16)
    assert cache_size(model).windows == (0, WINDOW, 0, WINDOW)


def test_a_prompt_can_need_more_than_its_cache():
    """If attention stores the scores of all pairs, a long prompt has the peak; otherwise decoding may have it."""
    size = CacheSize(token=10, windows=(0, 100), prompt_token=5, score=1, logits=3)
    assert size.cache(250) == 10 * (250 + 100)
    assert size.row(250, 260) == 3500 + 5 * 250 + 250**2 + 3
    assert size.row(10, 260) == 3600 + 2600 + 3


def test_gemma_2_stores_all_scores():
    """Because of its soft-capped scores; kernels of other models never store them."""
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZE, head_dim=8), attn_implementation="eager")
    assert cache_size(model).score > 0
    assert cache_size(AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))).score == 0

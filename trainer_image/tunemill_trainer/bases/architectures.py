"""Which base models can be trained: causal language models, and multimodal models with a causal language model.

A multimodal model has its language model's configuration in `text_config`. It is trained and served as a whole, so that
the names of its tensors stay those that servers expect; only the language model is changed.
"""

from collections.abc import Mapping
from typing import Any

_CAUSAL, _CONDITIONAL = "ForCausalLM", "ForConditionalGeneration"


def is_trainable(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of a causal language model, or of a multimodal model with one."""
    return any(name.endswith(_CAUSAL) for name in architectures(config)) or is_multimodal(config)


def is_multimodal(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is that of a multimodal model with a causal language model.

    Encoder-decoder models (T5, BART, Whisper) have the same ending of the architecture's name, but no `text_config`.
    """
    return (
        isinstance(config.get("text_config"), Mapping)
        and not config.get("is_encoder_decoder")
        and any(name.endswith(_CONDITIONAL) for name in architectures(config))
    )


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the model's classes; empty if config.json has none."""
    listed = config.get("architectures")
    return [str(name) for name in listed] if isinstance(listed, list) else []

"""The architectures of which a GGUF file can be written: their hyperparameters and tensors as llama.cpp reads them.

llama.cpp implements each architecture anew, so only those are listed whose replies were compared with Transformers' on
the real llama.cpp server (tests/serving/test_llama_cpp.py). Any other is refused before training.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSOR, TENSOR_NAMES, GGUFWriter, RopeScalingType
from numpy.typing import NDArray

Array = NDArray[Any]
Config = Any
"""A PretrainedConfig of Transformers, which ships no types."""


class NotConvertibleError(Exception):
    """A model or tokenizer that cannot be written as GGUF. The message is a clause that says why."""


def _unchanged(_name: str, tensor: Array, _config: Config) -> Array:
    return tensor


def _interleaved(name: str, tensor: Array, config: Config) -> Array:
    """Reorder the rows of query and key projections.

    Transformers rotates the first with the second half of a head, llama.cpp's `llama` architecture rotates neighbours.
    """
    if "q_proj" in name:
        heads = config.num_attention_heads
    elif "k_proj" in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _norm_plus_one(name: str, tensor: Array, _config: Config) -> Array:
    """Add the one that Gemma's normalization adds to its weights when it computes."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _no_more(_writer: GGUFWriter, _config: Config) -> None:
    pass


def _gemma2(writer: GGUFWriter, config: Config) -> None:
    _attention_window(writer, config, period=2)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: Config) -> None:
    _attention_window(writer, config, period=6)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _attention_window(writer: GGUFWriter, config: Config, period: int) -> None:
    """Write the sliding window. llama.cpp knows which layers have it: all but every `period`-th one."""
    expected = ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in _layers(config)]
    if list(config.layer_types) != expected:
        raise NotConvertibleError(f"not every {period}th layer has full attention, as llama.cpp assumes")
    if config.query_pre_attn_scalar != config.head_dim:
        raise NotConvertibleError(
            f"it scales queries by {config.query_pre_attn_scalar}, and llama.cpp by the head size {config.head_dim}"
        )
    writer.add_sliding_window(config.sliding_window)


def _layers(config: Config) -> range:
    return range(int(config.num_hidden_layers))


def _refuse_windows(_writer: GGUFWriter, config: Config) -> None:
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise NotConvertibleError(
            "it has sliding window attention, which llama.cpp does not have for this architecture"
        )


@dataclass(frozen=True)
class _Architecture:
    """How llama.cpp implements a model type of Transformers.

    Attributes:
        arch: llama.cpp's architecture.
        tensor: returns a weight as llama.cpp expects it.
        more: writes the hyperparameters that not all architectures have.
    """

    arch: MODEL_ARCH
    tensor: Callable[[str, Array, Config], Array] = _unchanged
    more: Callable[[GGUFWriter, Config], None] = _no_more


_ARCHITECTURES = {
    "llama": _Architecture(MODEL_ARCH.LLAMA, _interleaved),
    "mistral": _Architecture(MODEL_ARCH.LLAMA, _interleaved, _refuse_windows),
    "qwen2": _Architecture(MODEL_ARCH.QWEN2, more=_refuse_windows),
    "qwen3": _Architecture(MODEL_ARCH.QWEN3, more=_refuse_windows),
    "gemma2": _Architecture(MODEL_ARCH.GEMMA2, _norm_plus_one, _gemma2),
    "gemma3_text": _Architecture(MODEL_ARCH.GEMMA3, _norm_plus_one, _gemma3),
}
"""By the model type of Transformers."""
SUPPORTED = tuple(_ARCHITECTURES)


def name_of(config: Config) -> str:
    """Return llama.cpp's name of the architecture.

    Raises:
        NotConvertibleError: for a model type that is not supported.
    """
    return MODEL_ARCH_NAMES[_of(config).arch]


def add_hyperparameters(writer: GGUFWriter, config: Config) -> None:
    """Write the hyperparameters of a model.

    Raises:
        NotConvertibleError: when llama.cpp computes something else than the model.
    """
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_rope(writer, _rope(config))
    _of(config).more(writer, config)


def tensors(config: Config, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight in Transformers and in llama.cpp.

    Raises:
        NotConvertibleError: for a weight that llama.cpp does not know.
    """
    from gguf import get_tensor_name_map

    found = get_tensor_name_map(_of(config).arch, config.num_hidden_layers)
    for name in names:
        there = found.get_name(name, try_suffixes=(".weight", ".bias"))
        if there is None:
            raise NotConvertibleError(f"llama.cpp has no tensor for its weight {name}")
        yield name, there


def converted(name: str, tensor: Array, config: Config) -> Array:
    """Return a weight as llama.cpp expects it, from its name in Transformers and its float32 values."""
    return np.ascontiguousarray(_of(config).tensor(name, tensor, config))


def extra_tensors(config: Config) -> dict[str, Array]:
    """Return tensors that Transformers computes from the configuration, by their name in llama.cpp."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return {}
    return {f"{TENSOR_NAMES[MODEL_TENSOR.ROPE_FREQS]}.weight": _llama3_divisors(config, rope)}


def _of(config: Config) -> _Architecture:
    found = _ARCHITECTURES.get(config.model_type)
    if found is None:
        raise NotConvertibleError(f"its architecture is {config.model_type}, expected one of {', '.join(SUPPORTED)}")
    return found


def _rope(config: Config) -> dict[str, Any]:
    """Return the parameters of the rotary embedding; of the layers with full attention, where others differ."""
    rope: dict[str, Any] = config.rope_parameters
    found: dict[str, Any] = rope.get("full_attention", rope)
    return found


def _add_rope(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    kind = rope["rope_type"]
    if kind not in {"default", "linear", "yarn", "llama3"} or rope.get("partial_rotary_factor", 1) != 1:
        raise NotConvertibleError(f"it has the rotary embedding {kind}, expected default, linear, yarn or llama3")
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in {"linear", "yarn"}:
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _llama3_divisors(config: Config, rope: dict[str, Any]) -> Array:
    """Return the divisor of each frequency of Llama 3.1's rotary embedding, shape (head size / 2)."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1 / rope["rope_theta"] ** (np.arange(0, head, 2, dtype=np.float64) / head)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    # One above `high` turns in the original context, the factor below `low`, and a transition between them.
    share = np.clip((turns - low) / (high - low), 0, 1)
    divisors: Array = (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)
    return divisors

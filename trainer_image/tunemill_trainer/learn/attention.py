"""Attention for rows that are concatenated into one sequence (packing), without attention between rows.

Three implementations are registered with Transformers: PyTorch's variable-length kernel for GPUs, FlexAttention for
models with soft-capped scores on GPUs, and one call per row for the CPU, so that tests cover the path of a GPU.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig

FAMILIES = frozenset(
    {
        *("gemma", "gemma2", "gemma3_text", "granite", "llama", "ministral", "mistral", "olmo2", "phi", "phi3"),
        *("qwen2", "qwen3", "smollm3"),
    }
)
"""Model types that were tested to give the same loss and gradients for concatenated rows as for padded rows.

Other models get padded rows: a recurrent state, for example, would leak from one row into the next.
"""

_VARLEN, _FLEX, _BY_ROW = "tunemill_varlen", "tunemill_flex", "tunemill_by_row"
_NEEDED_CAPABILITY = (8, 0)
"""The lowest compute capability for FlashAttention, which PyTorch's kernel uses."""
_TRIED_LENGTHS = (150, 1, 70)
_TOLERANCE = 0.05
"""For 16-bit values of about 1. Attention between rows would give far larger differences."""

_log = logging.getLogger(__name__)

Attention = Callable[..., tuple[torch.Tensor, None]]


@dataclass(frozen=True, eq=False)
class Rows:
    """The boundaries of the rows in a sequence; created once per forward pass and shared by all layers.

    Attributes:
        lengths: tokens of each row.
        starts: index of the first token of each row, then the total number; int32, on the device of the sequence.
    """

    lengths: tuple[int, ...]
    starts: torch.Tensor
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> "Rows":
        """Return the boundaries of rows with these lengths."""
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), ends.to(device))

    def block_mask(self, window: int | None) -> BlockMask:
        """Return FlexAttention's mask: causal within each row, limited to `window` tokens unless that is None."""
        if window not in self._masks:
            total, device = sum(self.lengths), self.starts.device
            row = torch.searchsorted(self.starts[1:], torch.arange(total, device=device), right=True)

            def visible(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> Any:  # noqa: ANN401
                causal = (row[query] == row[key]) & (query >= key)
                return causal if window is None else causal & (query - key < window)

            self._masks[window] = create_block_mask(visible, None, None, total, total, device=device)
        return self._masks[window]


@contextmanager
def end_to_end(model: Any, device: torch.device, dtype: torch.dtype) -> Iterator[bool]:  # noqa: ANN401 - transformers ships no types
    """Switch a model to attention for concatenated rows inside the block, if the model and the device support it.

    Args:
        model: a causal language model, without an adapter.
        device: where it computes.
        dtype: the number format of the computation.

    Yields:
        Whether it was switched, and must be called with `rows`. Otherwise rows must be padded.
    """
    name, why = _choose(model.config, device, dtype)
    if name is None:
        _log.info("padding rows to the longest of their forward pass: %s", why)
        yield False
        return
    before = model.config._attn_implementation  # noqa: SLF001 - Transformers has no public getter
    model.set_attn_implementation(name)
    try:
        yield True
    finally:
        model.set_attn_implementation(before)


def _choose(config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> tuple[str | None, str]:
    """Return the name of the implementation to use, or None and the reason."""
    if config.model_type not in FAMILIES:
        return None, f"models of type {config.model_type} were not tested with concatenated rows"
    if getattr(config, "attention_dropout", 0.0) or getattr(config, "use_bidirectional_attention", False):
        return None, "the model's attention is not plain causal attention without dropout"
    if device.type == "cpu":
        return _BY_ROW, ""
    if dtype not in (torch.bfloat16, torch.float16):
        return None, f"there is no kernel for {dtype}"
    if torch.cuda.get_device_capability(device) < _NEEDED_CAPABILITY:
        return None, f"{torch.cuda.get_device_name(device)} is older than the Ampere generation"
    name = _FLEX if getattr(config, "attn_logit_softcapping", None) else _VARLEN
    problem = _self_test(_ATTENTIONS[name], config, device, dtype)
    return (name, "") if problem is None else (None, f"the self-test of the attention kernel failed: {problem}")


def _self_test(attention: Attention, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Run an implementation forward and backward with the shapes of a model; return the problem, or None.

    The results are compared with those of one call per row. Takes milliseconds, for FlexAttention some seconds of
    compilation.
    """
    dimension = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    rows = Rows.of(_TRIED_LENGTHS, device)
    generator = torch.Generator().manual_seed(0)
    # With tokens as the first dimension in memory, as in a model.
    inputs = [
        torch.randn(1, sum(_TRIED_LENGTHS), count, dimension, generator=generator).to(device, dtype).transpose(1, 2)
        for count in (heads, shared, shared)
    ]
    softcap = getattr(config, "attn_logit_softcapping", None)
    compared: tuple[Attention, Attention] = (attention, _by_row)
    for window in (None, 64) if getattr(config, "sliding_window", None) else (None,):
        found = []
        for function in compared:
            leaves = [tensor.clone().requires_grad_() for tensor in inputs]
            settings = {"scaling": dimension**-0.5, "softcap": softcap, "sliding_window": window, "rows": rows}
            try:
                out, _ = function(None, *leaves, None, **settings)
                out.sum().backward()
            # Compilers and drivers raise many kinds of errors, and padding rows works in any case.
            except Exception as error:  # noqa: BLE001
                return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            found.append([out.detach(), *(leaf.grad for leaf in leaves)])
        for one, other in zip(*found, strict=True):
            if not torch.allclose(one.float(), other.float(), rtol=_TOLERANCE, atol=_TOLERANCE):
                return f"the results differ by up to {float((one - other).abs().max()):.2g}"
    return None


def _varlen(
    _module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    rows: Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Compute attention with PyTorch's variable-length kernel.

    Args:
        query: shape (1, heads, tokens, head size).
        key: as query, but may have fewer heads (grouped-query attention).
        value: as key.
        rows: the boundaries of the rows.
        scaling: factor of the scores.
        sliding_window: number of visible tokens, including the token itself; None is unlimited.

    Returns:
        Shape (1, tokens, heads, head size).
    """
    out = varlen_attn(
        *(tensor[0].transpose(0, 1) for tensor in _as_computed(query, key, value)),
        rows.starts,
        rows.starts,
        max(rows.lengths),
        max(rows.lengths),
        scale=scaling,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.unsqueeze(0), None


@cache
def _compiled_flex() -> Any:  # noqa: ANN401
    """Return compiled FlexAttention; uncompiled, it would have all scores in memory."""
    return torch.compile(flex_attention)


def _flex(
    _module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    rows: Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Compute attention with FlexAttention, which supports a soft cap. Arguments and result as in `_varlen`."""

    def capped(score: torch.Tensor, *_where: torch.Tensor) -> torch.Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    out = _compiled_flex()(
        *_as_computed(query, key, value),
        score_mod=capped,
        block_mask=rows.block_mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _by_row(
    _module: object,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None,
    *,
    rows: Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Compute attention row by row, on any device. Arguments and result as in `_varlen`."""
    shared = query.shape[1] != key.shape[1]
    outputs = []
    for q, k, v in zip(*(tensor.split(rows.lengths, dim=2) for tensor in (query, key, value)), strict=True):
        length = q.shape[2]
        band = None
        if softcap is not None or (sliding_window is not None and length > sliding_window):
            band = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            if sliding_window is not None:
                band = band.triu(1 - sliding_window)
        if softcap is None:
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=band, is_causal=band is None, scale=scaling, enable_gqa=shared
            )
        else:
            out = _soft_capped(q, k, v, band, scaling, softcap)
        outputs.append(out)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _soft_capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights.to(value.dtype) @ value


def _as_computed(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Convert tensors to the dtype of autocast, which the kernels do not do by themselves.

    The norms of query and key keep the dtype of their weights, so the dtypes of query, key and value may differ.
    """
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


_ATTENTIONS: dict[str, Attention] = {_VARLEN: _varlen, _FLEX: _flex, _BY_ROW: _by_row}
# No mask functions are registered for these names, so Transformers does not build masks.
for _name, _attention in _ATTENTIONS.items():
    AttentionInterface.register(_name, _attention)

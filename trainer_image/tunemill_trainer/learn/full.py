"""The method Full: the number format of the weights, and the optimizer.

If memory allows, weights, gradients and both moments of AdamW are FP32: 16 bytes for each weight, and 2 more for the
BF16 copy that autocast makes. Otherwise weights and gradients are BF16 and the moments have 8 bits: 6 bytes. See
docs/adr/0015-whole-models-on-one-gpu.md.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.optim.adamw import AdamW8bit
from safetensors import safe_open
from tunemill_api.failures import Reason
from typing_extensions import override

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn.devices import Device

_WIDE_BYTES, _COPY_BYTES, _COMPACT_BYTES = 16, 2, 6
_FOR_ACTIVATIONS = 0.1
"""The fraction of the GPU's memory that is reserved for everything except weights, gradients and optimizer."""
_ROUNDED_AT_ONCE = 1 << 24
"""Elements that are rounded in one step, to limit the temporary memory."""


@dataclass(frozen=True)
class WeightFormat:
    """The format of the weights during training with the method Full.

    Attributes:
        dtype: the number format of weights and gradients.
        compact: whether the optimizer's moments have 8 bits, and updates are rounded stochastically.
    """

    dtype: torch.dtype
    compact: bool


WIDE = WeightFormat(torch.float32, compact=False)
COMPACT = WeightFormat(torch.bfloat16, compact=True)


def weight_format(weights: int, device: Device, dtype: torch.dtype, remedy: str = "") -> WeightFormat:
    """Return the widest format in which a model can be trained.

    Args:
        weights: number of weights of the model.
        device: where it trains. On the CPU, the memory is not known and the format is FP32.
        dtype: the number format of the computation; only BF16 has a compact format.
        remedy: the remedy of the error.

    Raises:
        StageError: CudaOutOfMemory, when weights, gradients and optimizer do not fit into the GPU in any format.
    """
    if device.kind == "cpu":
        return WIDE
    wide = weights * (_WIDE_BYTES + (_COPY_BYTES if dtype is not torch.float32 else 0))
    if wide <= device.memory * (1 - _FOR_ACTIVATIONS):
        return WIDE
    least, chosen = (weights * _COMPACT_BYTES, COMPACT) if dtype is torch.bfloat16 else (weights * _WIDE_BYTES, WIDE)
    if least > device.memory:
        raise StageError(
            Reason.CUDA_OUT_OF_MEMORY,
            f"spec.adapter.method Full trains all {weights:,} weights and needs at least {least >> 20} MiB "
            f"({least // weights} bytes for each weight), but {device.name} has {device.memory >> 20} MiB",
            remedy,
        )
    return chosen


def format_of_checkpoint(trained: Path) -> WeightFormat:
    """Return the format of the parameters in a checkpoint. A resumed run keeps it."""
    with safe_open(trained, framework="pt") as file:
        names = list(file.keys())
        return COMPACT if file.get_slice(names[0]).get_dtype() == "BF16" else WIDE


def count_weights(folder: Path) -> int:
    """Return the number of weights in the safetensors files of a model. Tied weights count once."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                count += math.prod(file.get_slice(name).get_shape())
    return count


class StochasticAdamW8bit(AdamW8bit):
    """AdamW with 8-bit moments and stochastic rounding of BF16 weights.

    BF16 has 8 significant bits. Most updates in fine-tuning are below 1/512 of the weight, and would be lost by
    rounding to nearest. Stochastic rounding keeps them on average (Zamirai et al., "Revisiting BFloat16 Training",
    2020). Each weight is updated in FP32 and rounded once.

    The random numbers depend on step and parameter only, so that all ranks of a run round in the same way.
    """

    @override
    def update_step(self, group: dict[str, Any], p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
        """Update one parameter through a temporary FP32 copy."""
        weights, gradient = p.data, p.grad
        if weights.dtype is not torch.bfloat16 or gradient is None:
            super().update_step(group, p, gindex, pindex)
            return
        # PyTorch requires that a gradient has the dtype of its parameter, so clear it first.
        p.grad = None
        p.data = weights.float()
        p.grad = gradient.float()
        super().update_step(group, p, gindex, pindex)
        updated = p.data
        p.grad = None
        p.data = weights
        generator = torch.Generator(weights.device)
        # A hash, because the generator of the CPU uses 32 bits of its seed.
        generator.manual_seed(zlib.crc32(f"{self.state[p]['step']}/{gindex}/{pindex}".encode()))
        round_stochastically(updated, weights, generator)
        p.grad = gradient


def round_stochastically(tensor: torch.Tensor, rounded: torch.Tensor, generator: torch.Generator | None = None) -> None:
    """Write an FP32 tensor to a BF16 tensor with stochastic rounding, which is exact on average.

    Args:
        tensor: the FP32 tensor, which is overwritten.
        rounded: the BF16 tensor.
        generator: of the random numbers; None for the default one.
    """
    for source, target in zip(
        tensor.view(-1).split(_ROUNDED_AT_ONCE), rounded.view(-1).split(_ROUNDED_AT_ONCE), strict=True
    ):
        finite = source.isfinite()
        # BF16 is the upper half of FP32. Adding a random number below one unit of BF16 carries into the upper half with
        # the right probability. Infinity and NaN are left unchanged.
        bits = source.view(torch.int32)
        noise = torch.randint(1 << 16, bits.shape, generator=generator, dtype=bits.dtype, device=bits.device)
        bits += noise * finite
        bits &= torch.where(finite, -(1 << 16), -1)
        target.copy_(source)

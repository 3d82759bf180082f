"""Training a whole model: in which number format its weights are kept, and by which optimizer they are moved.

With room, weights, gradients and both moments of AdamW are FP32: 16 bytes of memory for each weight, and 2 more for its
copy in BF16 that autocast computes with. Without, weights and gradients are BF16 and the moments have 8 bits: 6 bytes.
See docs/adr/0015-whole-models-on-one-gpu.md.
"""

import math
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
"""The share of the GPU's memory that weights and optimizer leave to everything else."""
_ROUNDED_AT_ONCE = 1 << 24
"""Numbers, so that rounding needs little memory of its own."""


@dataclass(frozen=True)
class WeightFormat:
    """How the weights of a whole model are kept while it is trained.

    Attributes:
        dtype: of weights and gradients.
        compact: whether the moments have 8 bits, and weights are rounded stochastically.
    """

    dtype: torch.dtype
    compact: bool


WIDE = WeightFormat(torch.float32, compact=False)
COMPACT = WeightFormat(torch.bfloat16, compact=True)


def weight_format(weights: int, device: Device, dtype: torch.dtype, remedy: str = "") -> WeightFormat:
    """Return the widest format in which a model can be trained.

    Args:
        weights: how many the model has.
        device: where it is trained; on a CPU memory is not known, and the format is always FP32.
        dtype: of the computation; only BF16 has a compact format.
        remedy: for the error.

    Raises:
        StageError: CudaOutOfMemory, when weights and optimizer alone are larger than the GPU in any format.
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
            f"spec.adapter.method Full trains all {weights:,} weights: at least {least >> 20} MiB are needed "
            f"({least // weights} bytes each), {device.name} has {device.memory >> 20} MiB",
            remedy,
        )
    return chosen


def format_of_checkpoint(trained: Path) -> WeightFormat:
    """Return the format in which a run was trained, off the parameters in its checkpoint: it goes on in the same."""
    with safe_open(trained, framework="pt") as file:
        names = list(file.keys())
        return COMPACT if file.get_slice(names[0]).get_dtype() == "BF16" else WIDE


def count_weights(folder: Path) -> int:
    """Return how many weights the safetensors files of a model hold; those of tied layers are in them once."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                count += math.prod(file.get_slice(name).get_shape())
    return count


class StochasticAdamW8bit(AdamW8bit):
    """AdamW with moments of 8 bits that moves BF16 weights by the right amount on average.

    BF16 has 8 significant bits: an update below 1/512 of a weight, as most of fine-tuning are, is lost when the sum is
    rounded to the nearest number. Rounding up or down at random, in proportion to what is cut off, keeps it on average
    (Zamirai et al., "Revisiting BFloat16 Training", 2020). Each weight is updated in FP32 and rounded once.
    """

    @override
    def update_step(self, group: dict[str, Any], p: torch.nn.Parameter, gindex: int, pindex: int) -> None:
        """Move one parameter; its FP32 copy exists for this moment alone."""
        weights, gradient = p.data, p.grad
        if weights.dtype is not torch.bfloat16 or gradient is None:
            super().update_step(group, p, gindex, pindex)
            return
        # A gradient has the type of its weights at all times.
        p.grad = None
        p.data = weights.float()
        p.grad = gradient.float()
        super().update_step(group, p, gindex, pindex)
        moved = p.data
        p.grad = None
        p.data = weights
        round_stochastically(moved, weights)
        p.grad = gradient


def round_stochastically(tensor: torch.Tensor, rounded: torch.Tensor) -> None:
    """Write an FP32 tensor to a BF16 one, each number rounded up or down with the chance of its distance to the other.

    The FP32 tensor is changed.
    """
    for source, target in zip(
        tensor.view(-1).split(_ROUNDED_AT_ONCE), rounded.view(-1).split(_ROUNDED_AT_ONCE), strict=True
    ):
        finite = source.isfinite()
        # BF16 is the upper half of FP32: a random number below one unit of it carries into it with the right chance.
        # What is infinite or no number must not be carried on to something else.
        bits = source.view(torch.int32)
        bits += torch.randint_like(bits, 1 << 16) * finite
        bits &= torch.where(finite, -(1 << 16), -1)
        target.copy_(source)

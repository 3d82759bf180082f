"""Where a model computes: the GPU that was asked for, or the CPU; in which number format, and on how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from tunemill_api.failures import Reason
from tunemill_api.training import Precision

from tunemill_trainer.errors import StageError


@dataclass(frozen=True)
class Device:
    """What the stage computes on.

    Attributes:
        kind: as PyTorch calls it.
        name: for people, for example cpu or NVIDIA H200.
    """

    kind: Literal["cpu", "cuda"]
    name: str

    @property
    def torch_name(self) -> str:
        """The name for PyTorch; with an index, as Transformers takes another one for a second device."""
        return "cpu" if self.kind == "cpu" else "cuda:0"


def choose(gpus: int) -> Device:
    """Return the device for a number of GPUs; 0 means the CPU, even on a machine with a GPU.

    Call it first: nothing should be downloaded for a pod that cannot train.

    Raises:
        StageError: CudaUnavailable, when no GPU works; InvalidSpec, when more than one is asked for.
    """
    if gpus == 0:
        return Device("cpu", "cpu")
    if gpus > 1:
        # Better than to hold GPUs that nothing is computed on.
        raise StageError(Reason.INVALID_SPEC, f"spec.compute.gpus is {gpus}: expected 0 or 1, training uses one GPU")
    if not torch.cuda.is_available():
        raise StageError(
            Reason.CUDA_UNAVAILABLE, f"spec.compute.gpus asks for a GPU, and CUDA does not work here: {_why()}"
        )
    return Device("cuda", torch.cuda.get_device_name(0))


def dtype(precision: Precision, device: Device) -> torch.dtype:
    """Return the number format of weights and computation.

    Raises:
        StageError: InvalidSpec, when the device cannot compute in the format that was asked for.
    """
    if precision is Precision.FP32 or (precision is Precision.AUTO and device.kind == "cpu"):
        return torch.float32
    if precision is Precision.FP16 and device.kind == "cpu":
        # Gradients in FP16 need a scaler, which PyTorch has for GPUs alone.
        raise StageError(
            Reason.INVALID_SPEC, "spec.training.precision FP16 needs a GPU: expected BF16, FP32 or Auto on the CPU"
        )
    native = device.kind == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.BF16 and not native:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.training.precision BF16 is not supported by {device.name}: expected FP16 or FP32",
        )
    return torch.bfloat16 if native and precision is not Precision.FP16 else torch.float16


@contextmanager
def device_errors(device: Device) -> Iterator[None]:
    """Turn the device's lack of memory inside the block into a StageError.

    Raises:
        StageError: CudaOutOfMemory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(0).total_memory >> 20
        raise StageError(
            Reason.CUDA_OUT_OF_MEMORY, f"the {total} MiB of {device.name} are not enough: {str(error).splitlines()[0]}"
        ) from error


def _why() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no device is visible"

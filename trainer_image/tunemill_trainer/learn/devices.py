"""Where a model computes: a GPU or the CPU; in which number format; what helps when its memory is full."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec, Quantization
from tunemill_api.training import AdapterMethod, Precision

from tunemill_trainer.bases import catalogue
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn.out_of_memory import Shortage, is_out_of_memory, shortage_of

OUT_OF_RANGE_IN_FP16 = catalogue.types_out_of_range_in_fp16() | {"glm4", "plamo2"}
"""Values of `model_type` that FP16, whose largest number is 65504, breaks; FunctionGemma is a gemma3_text. Those for
which vLLM refuses FP16 for numerical instability (`_FLOAT16_NOT_SUPPORTED_MODELS` in vllm/config/model.py)."""
MINIMUM_DRIVER = "580"
"""NVIDIA's driver for Linux that CUDA 13 needs at least (docs.nvidia.com/deploy/cuda-compatibility, table 1)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """What the stage computes on.

    Attributes:
        kind: as PyTorch calls it.
        name: for people, for example cpu or NVIDIA H200.
        memory: bytes of the GPU; 0 for the CPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    memory: int = 0

    @property
    def torch_name(self) -> str:
        """The name for PyTorch; with an index, as Transformers takes another one for a second device."""
        return "cpu" if self.kind == "cpu" else "cuda:0"


def choose(gpus: int) -> Device:
    """Return the device for a number of GPUs; 0 means the CPU, even on a machine with a GPU.

    Call it first: nothing should be downloaded for a pod that cannot train.

    Raises:
        StageError: CudaUnavailable, when no GPU works, or PyTorch has no kernels for it; InvalidSpec, when more than
            one is asked for.
    """
    if gpus == 0:
        return Device("cpu", "cpu")
    if gpus > 1:
        # Better than to hold GPUs that nothing is computed on.
        raise StageError(Reason.INVALID_SPEC, f"spec.compute.gpus is {gpus}: expected 0 or 1, training uses one GPU")
    if not torch.cuda.is_available():
        raise StageError(
            Reason.CUDA_UNAVAILABLE,
            f"spec.compute.gpus asks for a GPU, and CUDA {torch.version.cuda} does not work here: {_why()}",
            f"Check that the device plugin offers GPUs of this node and that its NVIDIA driver is {MINIMUM_DRIVER} or "
            "newer; docs/how-to/gpus.md. For a run on the CPU set spec.compute.gpus to 0.",
        )
    properties = torch.cuda.get_device_properties(0)
    device = Device("cuda", properties.name, properties.total_memory)
    capability = (properties.major, properties.minor)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        raise StageError(
            Reason.CUDA_UNAVAILABLE,
            f"{device.name} has compute capability {capability[0]}.{capability[1]}, for which PyTorch "
            f"{torch.__version__} has no kernels: expected a GPU for one of {', '.join(torch.cuda.get_arch_list())}",
            "Choose nodes with a newer GPU with nodeSelector in spec.podTemplates.train: docs/how-to/gpus.md.",
        )
    _log.info("training on %s with %d MiB", device.name, device.memory >> 20)
    return device


def has_kernels(capability: tuple[int, int], compiled_for: Sequence[str]) -> bool:
    """Tell whether a GPU runs what a PyTorch was compiled for.

    Machine code (sm_86) runs on GPUs of the same major version from its minor version on, intermediate code
    (compute_90) on all newer GPUs; with an `a` either runs on that very version alone (CUDA C++ Programming Guide,
    "Application Compatibility").

    Args:
        capability: the GPU's compute capability, major and minor.
        compiled_for: as `torch.cuda.get_arch_list` returns it.
    """
    for name in compiled_for:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        kind, built = found[1], (int(found[2]), int(found[3]))
        if found[4] == "a":
            fits = capability == built
        elif kind == "sm" or found[4] == "f":
            fits = capability[0] == built[0] and capability[1] >= built[1]
        else:
            fits = capability >= built
        if fits:
            return True
    return False


def dtype(precision: Precision, device: Device, model_type: str = "") -> torch.dtype:
    """Return the number format of weights and computation.

    Args:
        precision: the wish.
        device: what it is computed on.
        model_type: of the base model's configuration; empty before that is known.

    Raises:
        StageError: InvalidSpec, when the device cannot compute in the format that was asked for, or the model cannot.
    """
    native = device.kind == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    half_fails = model_type in OUT_OF_RANGE_IN_FP16
    if precision is Precision.AUTO:
        if device.kind == "cpu":
            return torch.float32
        if native:
            return torch.bfloat16
        return torch.float32 if half_fails else torch.float16
    if precision is Precision.FP32:
        return torch.float32
    if precision is Precision.FP16 and device.kind == "cpu":
        # Gradients in FP16 need a scaler, which PyTorch has for GPUs alone.
        raise StageError(
            Reason.INVALID_SPEC, "spec.training.precision FP16 needs a GPU: expected BF16, FP32 or Auto on the CPU"
        )
    if precision is Precision.FP16 and half_fails:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.training.precision FP16 is too narrow for models of type {model_type}, which compute with "
            f"numbers above 65504: expected Auto or {'BF16' if native else 'FP32'}",
        )
    if precision is Precision.BF16 and not native:
        expected = "FP32" if half_fails else "FP16 or FP32"
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.training.precision BF16 is not supported by {device.name}: expected {expected}",
        )
    return torch.bfloat16 if precision is Precision.BF16 else torch.float16


def fp16_in_use(number_format: torch.dtype, quantization: Quantization) -> str:
    """Return what computes in FP16, whose largest number is 65504, and what to change; empty when nothing does.

    Args:
        number_format: of the computation.
        quantization: of the base model: the kernel of Int8 takes its inputs in FP16, whatever the format.
    """
    if number_format is torch.float16:
        return (
            "Set spec.training.precision to FP32, or train on a GPU with BF16 (compute capability 8.0 or higher): "
            "the run computes in FP16, whose largest number is 65504."
        )
    if quantization is Quantization.INT8:
        return (
            "Set spec.baseModel.quantization to NF4 or None: Int8 computes in FP16, whose largest number is 65504, "
            "whatever spec.training.precision says."
        )
    return ""


def out_of_memory(device: Device, shortage: Shortage, what: str, remedy: str = "") -> StageError:
    """Return the error of work that cannot be made smaller.

    Args:
        device: what it was computed on.
        shortage: what is known.
        what: what did not fit, for the message.
        remedy: the fields to change; empty means the general advice.
    """
    if device.kind == "cpu":
        return StageError(Reason.OUT_OF_MEMORY, f"{what} does not fit into the pod's memory: {shortage.message}")
    # PyTorch names what it could use; other processes and the CUDA context take their share of the capacity, too.
    found = shortage.available or shortage.capacity or device.memory >> 20
    amount = f"{device.name} has {found} MiB"
    if shortage.needed > found:
        amount = f"at least {shortage.needed} MiB are needed, {amount}"
    return StageError(Reason.CUDA_OUT_OF_MEMORY, f"{what} does not fit into the GPU's memory: {amount}", remedy)


def smaller(spec: FineTuneSpec, row_tokens: int = 0) -> str:
    """Return the fields of a spec with which it would need less memory.

    Args:
        spec: the wish.
        row_tokens: of the row that did not fit; 0 when it was not about a row.
    """
    fields = []
    if row_tokens:
        fields.append(f"lower spec.training.maxLength below {row_tokens}")
    if spec.adapter.method is AdapterMethod.FULL:
        fields.append("set spec.adapter.method to LoRA")
    elif spec.base_model.quantization is not Quantization.NF4:
        fields.append("set spec.baseModel.quantization to NF4")
    fields.append("choose a GPU with more memory with nodeSelector in spec.podTemplates.train")
    text = ", or ".join(fields)
    return f"{text[0].upper()}{text[1:]}; docs/how-to/gpus.md says what fits."


@contextmanager
def device_errors(device: Device, what: str, remedy: str = "") -> Iterator[None]:
    """Turn a lack of memory inside the block into a StageError.

    Args:
        device: what is computed on.
        what: what the block does, for the message.
        remedy: the fields to change.

    Raises:
        StageError: CudaOutOfMemory; OutOfMemory on the CPU.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StageError) or not is_out_of_memory(error):
            raise
        raise out_of_memory(device, shortage_of(error), what, remedy) from error


def _why() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "no device is visible"

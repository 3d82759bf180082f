"""The device (GPU or CPU) and number format of a computation, and the errors when its memory is not enough."""

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
"""Values of `model_type` whose activations exceed the range of FP16 (65504): the models for which vLLM refuses FP16
(`_FLOAT16_NOT_SUPPORTED_MODELS` in vllm/config/model.py). FunctionGemma is a gemma3_text."""
MINIMUM_DRIVER = "580"
"""The minimum NVIDIA driver for CUDA 13 on Linux (docs.nvidia.com/deploy/cuda-compatibility, table 1)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """The device of a stage.

    Attributes:
        kind: PyTorch's device type.
        name: the display name, for example cpu or NVIDIA H200.
        memory: memory of the GPU in bytes; 0 for the CPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    memory: int = 0

    @property
    def torch_name(self) -> str:
        """The device string for PyTorch. It has an index, without which Transformers treats it as another device."""
        return "cpu" if self.kind == "cpu" else "cuda:0"


def choose(gpus: int, local_rank: int = 0) -> Device:
    """Return the device for a number of GPUs; 0 means the CPU, even on a machine with a GPU.

    Call it before anything is downloaded, so that a pod without a working GPU fails at once.

    Args:
        gpus: spec.compute.gpus. Each process sees only its own GPU.
        local_rank: which GPU of the node that is, for the message.

    Raises:
        StageError: CudaUnavailable, when the GPU does not work, or PyTorch has no kernels for it.
    """
    if gpus == 0:
        return Device("cpu", "cpu")
    if not torch.cuda.is_available():
        wanted = "a GPU" if gpus == 1 else f"{gpus} GPUs"
        which = "" if gpus == 1 else f" for GPU {local_rank}"
        raise StageError(
            Reason.CUDA_UNAVAILABLE,
            f"spec.compute.gpus requests {wanted}, but CUDA {torch.version.cuda} does not work on this node{which}: "
            f"{_why()}",
            "Check that the device plugin exposes the GPUs of this node and that its NVIDIA driver is "
            f"{MINIMUM_DRIVER} or newer; see docs/how-to/gpus.md. To run on the CPU, set spec.compute.gpus to 0.",
        )
    properties = torch.cuda.get_device_properties(0)
    device = Device("cuda", properties.name, properties.total_memory)
    capability = (properties.major, properties.minor)
    if not has_kernels(capability, torch.cuda.get_arch_list()):
        raise StageError(
            Reason.CUDA_UNAVAILABLE,
            f"{device.name} has compute capability {capability[0]}.{capability[1]}, for which PyTorch "
            f"{torch.__version__} has no kernels: expected a GPU for one of {', '.join(torch.cuda.get_arch_list())}",
            "Select nodes with a newer GPU with nodeSelector in spec.podTemplates.train; see docs/how-to/gpus.md.",
        )
    _log.info("training on %s with %d MiB", device.name, device.memory >> 20)
    return device


def has_kernels(capability: tuple[int, int], compiled_for: Sequence[str]) -> bool:
    """Return whether a build of PyTorch has kernels for a GPU.

    Binary code (sm_86) runs on GPUs of the same major version with the same or a higher minor version, PTX code
    (compute_90) on that and all newer GPUs. With the suffix `a`, both run on exactly that version only (CUDA C++
    Programming Guide, "Application Compatibility").

    Args:
        capability: the GPU's compute capability, major and minor.
        compiled_for: the result of `torch.cuda.get_arch_list`.
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
        precision: spec.training.precision.
        device: the device of the computation.
        model_type: `model_type` of the base model's configuration; empty before it is known.

    Raises:
        StageError: InvalidSpec, when the device or the model does not support the requested format.
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
        # FP16 gradients need a gradient scaler, which PyTorch has for GPUs only.
        raise StageError(
            Reason.INVALID_SPEC, "spec.training.precision FP16 needs a GPU: expected BF16, FP32 or Auto on the CPU"
        )
    if precision is Precision.FP16 and half_fails:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.training.precision Auto or {'BF16' if native else 'FP32'}, found FP16: models of type "
            f"{model_type} have activations above 65504, the largest number of FP16",
        )
    if precision is Precision.BF16 and not native:
        expected = "FP32" if half_fails else "FP16 or FP32"
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.training.precision BF16 is not supported by {device.name}: expected {expected}",
        )
    return torch.bfloat16 if precision is Precision.BF16 else torch.float16


def fp16_remedy(number_format: torch.dtype, quantization: Quantization) -> str:
    """Return the remedy for values outside the range of FP16; empty when the run does not compute in FP16.

    Args:
        number_format: the number format of the computation.
        quantization: quantization of the base model. The Int8 kernel converts its inputs to FP16 in any case.
    """
    if number_format is torch.float16:
        return (
            "Set spec.training.precision to FP32, or train on a GPU with BF16 (compute capability 8.0 or higher): "
            "the run computes in FP16, whose largest number is 65504."
        )
    if quantization is Quantization.INT8:
        return (
            "Set spec.baseModel.quantization to NF4 or None: Int8 computes in FP16, whose largest number is 65504, "
            "regardless of spec.training.precision."
        )
    return ""


def out_of_memory(device: Device, shortage: Shortage, what: str, remedy: str = "") -> StageError:
    """Return the error when memory is not enough and there are no settings that need less.

    Args:
        device: the device of the computation.
        shortage: the details of the failed allocation.
        what: what did not fit, for the message.
        remedy: the fields to change; empty means the general remedy of the reason.
    """
    if device.kind == "cpu":
        return StageError(Reason.OUT_OF_MEMORY, f"{what} does not fit into the pod's memory: {shortage.message}")
    # Prefer the memory that PyTorch could use: other processes and the CUDA context use some of the capacity.
    found = shortage.available or shortage.capacity or device.memory >> 20
    amount = f"{device.name} has {found} MiB"
    if shortage.needed > found:
        amount = f"it needs at least {shortage.needed} MiB, {amount}"
    return StageError(Reason.CUDA_OUT_OF_MEMORY, f"{what} does not fit into the GPU's memory: {amount}", remedy)


def memory_remedy(spec: FineTuneSpec, row_tokens: int = 0) -> str:
    """Return a remedy: which fields of the spec to change to need less memory.

    Args:
        spec: the spec of the fine-tune.
        row_tokens: length of the row that did not fit; 0 if the error is not about a row.
    """
    fields = []
    if row_tokens:
        fields.append(f"lower spec.training.maxLength below {row_tokens}")
    if spec.adapter.method is AdapterMethod.FULL:
        fields.append("set spec.adapter.method to LoRA")
    elif spec.base_model.quantization is not Quantization.NF4:
        fields.append("set spec.baseModel.quantization to NF4")
    fields.append("select a GPU with more memory with nodeSelector in spec.podTemplates.train")
    text = ", or ".join(fields)
    return f"{text[0].upper()}{text[1:]}; see docs/how-to/gpus.md."


@contextmanager
def device_errors(device: Device, what: str, remedy: str = "") -> Iterator[None]:
    """Convert an out-of-memory error inside the block to a StageError.

    Args:
        device: the device of the computation.
        what: what the block does, for the message.
        remedy: the fields to change.

    Raises:
        StageError: CudaOutOfMemory, or OutOfMemory on the CPU.
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

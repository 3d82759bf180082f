"""The GPU memory that a run needs, and the GPUs on which it fits. The estimate itself is in `learn.memory`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec, Quantization
from tunemill_api.scalars import quantity_value
from tunemill_api.status import DatasetFacts, GpuMemoryFacts
from tunemill_api.training import AdapterMethod, LossOn

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.generate import answer_limit
from tunemill_trainer.learn.plan import plan
from tunemill_trainer.process import child
from tunemill_trainer.process.child import ChildError

MIB: Final = 1 << 20

GPUS: Final[Mapping[str, int]] = {
    "T4": 15_360,
    "RTX 4090": 24_564,
    "L4": 23_034,
    "A10G": 23_028,
    "RTX 5090": 32_607,
    "A100 40 GB": 40_960,
    "L40S": 46_068,
    "A100 80 GB": 81_920,
    "H100": 81_559,
    "H200": 143_771,
    "B200": 183_359,
}
"""Common GPUs and their memory in MiB, as reported by nvidia-smi."""

MOST_LAYERS: Final = 1000
"""The largest number of layers of a model that is built without weights: a config.json may name any number."""

_SECONDS = 300
_SUPERVISED = 0.25
"""The assumed fraction of supervised tokens, as in typical function-calling data, when prepare has not counted them."""


class UnknownMemoryError(Exception):
    """The memory of this model cannot be estimated. The message has the cause."""


class MemoryMode(StrEnum):
    """A way to train with less memory, from the fastest to the one that needs the least memory."""

    NONE = "no checkpointing"
    SELECTIVE = "every second layer checkpointed"
    FULL = "every layer checkpointed"
    ONE_ROW = "one row at a time"


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows, in tokens.

    Attributes:
        longest: length of the longest row.
        pass_tokens: maximum length of a forward pass in training.
        answer: maximum length of a reply in evaluate.
        supervised: fraction of the tokens on which the loss is computed.
    """

    longest: int
    pass_tokens: int
    answer: int
    supervised: float


def lengths_of(spec: FineTuneSpec, dataset: DatasetFacts | None = None, longest: int = 0) -> Lengths:
    """Return the lengths of the rows that prepare found, or upper bounds of them.

    Args:
        spec: the spec of the fine-tune.
        dataset: the facts of prepare; None if the data is not known.
        longest: length of the longest row if the data is not known; 0 means spec.training.maxLength.
    """
    training, supervised = spec.training, 1.0
    if dataset is not None:
        longest = dataset.longest_row_tokens
        supervised = float(dataset.supervised_token_percent or 100) / 100
    elif training.loss_on is LossOn.ASSISTANT:
        supervised = _SUPERVISED
    longest = longest or training.max_length
    answer = spec.evaluation.max_new_tokens or answer_limit([int(longest * supervised)])
    most = min(plan(training, 1).micro_batch_tokens, training.batch_size * longest)
    return Lengths(longest, max(longest, most), answer, supervised)


@dataclass(frozen=True)
class Need:
    """The peak memory of a stage.

    Attributes:
        mode: how the stage saves memory.
        parts: bytes by purpose.
        compact: whether the method Full trains BF16 weights with an 8-bit optimizer.
    """

    mode: MemoryMode
    parts: Mapping[str, int]
    compact: bool = False

    @property
    def mib(self) -> int:
        """The sum in MiB, rounded up."""
        return -(-sum(self.parts.values()) // MIB)


@dataclass(frozen=True)
class Estimate:
    """The memory that a run needs.

    Attributes:
        weights: number of weights of the base model.
        train: the needs of train in each mode, the fastest first.
        evaluate: the need of evaluate, whose batches adapt to the free memory.
    """

    weights: int
    train: tuple[Need, ...]
    evaluate: tuple[Need, ...]

    @property
    def least_mib(self) -> int:
        """The memory with which both stages can run at all."""
        return max(min(need.mib for need in stage) for stage in (self.train, self.evaluate))

    @property
    def full_speed_mib(self) -> int:
        """The memory with which train runs without gradient checkpointing."""
        return max(self.train[0].mib, self.least_mib)

    @property
    def facts(self) -> GpuMemoryFacts:
        """The figures for status."""
        return GpuMemoryFacts(least_mib=self.least_mib, full_speed_mib=self.full_speed_mib)

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Parse the result of `to_json`."""
        train, evaluate = (
            tuple(Need(MemoryMode(need["mode"]), need["parts"], need["compact"]) for need in value[stage])
            for stage in ("train", "evaluate")
        )
        return cls(value["weights"], train, evaluate)

    def fastest(self, mib: int) -> Need | None:
        """Return the fastest mode of train that fits into `mib`; None if no mode or evaluate does not fit."""
        if mib < self.least_mib:
            return None
        return next(need for need in self.train if need.mib <= mib)


def estimate_in_child(folder: Path, spec: FineTuneSpec, added: int, lengths: Lengths) -> Estimate:
    """Return the estimate, computed in a child process.

    The estimate imports torch, which this process does without, and an unusual configuration may crash the child only.

    Args:
        folder: has the base model's config.json.
        spec: the spec of the fine-tune.
        added: number of tokens added to the vocabulary.
        lengths: of the rows.

    Raises:
        UnknownMemoryError: the memory cannot be estimated.
    """
    request = {
        "folder": str(folder),
        "spec": spec.model_dump(mode="json", by_alias=True),
        "added": added,
        "lengths": asdict(lengths),
    }
    try:
        response = child.ask("tunemill_trainer.learn.memory", request, _SECONDS)
    except ChildError as error:
        raise UnknownMemoryError(f"the estimate failed: {error}") from error
    if "problem" in response:
        raise UnknownMemoryError(response["problem"])
    return Estimate.from_json(response)


def refuse_too_large(spec: FineTuneSpec, estimate: Estimate) -> None:
    """Raise CudaOutOfMemory if the run does not fit into spec.compute.gpuMemory in any mode.

    Raises:
        StageError: CudaOutOfMemory, with needed and given MiB and the fields to change.
    """
    given = spec.compute.gpu_memory
    if given is None:
        return
    mib = int(quantity_value(given) // MIB)
    if estimate.least_mib <= mib:
        return
    stage, needs = max((("train", estimate.train), ("evaluate", estimate.evaluate)), key=lambda each: each[1][-1].mib)
    largest = sorted(needs[-1].parts.items(), key=lambda part: -part[1])[:3]
    shares = ", ".join(f"{name} {-(-size // MIB)}" for name, size in largest)
    raise StageError(
        Reason.CUDA_OUT_OF_MEMORY,
        f"the run does not fit into spec.compute.gpuMemory: {stage} needs at least {estimate.least_mib} MiB "
        f"({shares}), but {given} are {mib} MiB",
        f"{_smaller(spec)}, or train on a larger GPU: set spec.compute.gpuMemory to its memory, and select it with "
        "nodeSelector in spec.podTemplates.train. `tunemill plan` lists the GPUs that fit.",
    )


def _smaller(spec: FineTuneSpec) -> str:
    """Return the most effective change of the spec."""
    if spec.adapter.method is AdapterMethod.FULL:
        return "Set spec.adapter.method to LoRA"
    if spec.base_model.quantization is not Quantization.NF4:
        return "Set spec.baseModel.quantization to NF4"
    return "Lower spec.training.maxLength, or choose a smaller spec.baseModel"


def table(estimate: Estimate) -> str:
    """Return the estimate as text: the parts in MiB, and which common GPUs fit."""
    lines = []
    for stage, needs in (("train", estimate.train), ("evaluate", estimate.evaluate)):
        for need in needs:
            weights = ", BF16 weights and 8-bit optimizer" if need.compact else ""
            lines += ["", f"{stage}, {need.mode}{weights}"]
            lines += [f"  {name:<20} {-(-size // MIB):>9,} MiB" for name, size in need.parts.items() if size]
            lines.append(f"  {'total':<20} {need.mib:>9,} MiB")
    lines += ["", f"{'GPU':<12} {'MEMORY':>12}   FITS"]
    for gpu, mib in sorted(GPUS.items(), key=lambda each: each[1]):
        fastest = estimate.fastest(mib)
        fits = "no" if fastest is None else f"yes, {fastest.mode}" + (", compact weights" if fastest.compact else "")
        lines.append(f"{gpu:<12} {mib:>8,} MiB   {fits}")
    return "\n".join(lines[1:])

"""What a run needs of a GPU's memory, where it fits, and how that is shown. `learn.memory` makes the estimate."""

import json
import subprocess
import sys
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
"""Common GPUs and their memory in MiB, as nvidia-smi shows it."""


_SECONDS = 300
_SUPERVISED = 0.25
"""The share of the tokens that assistants say in data of function calls with their tools; until prepare has counted."""


class UnknownMemoryError(Exception):
    """The memory of this model cannot be estimated; says why."""


class Rung(StrEnum):
    """How much is computed at once, from the fastest to what needs the least memory."""

    NONE = "no checkpointing"
    SELECTIVE = "every second layer checkpointed"
    FULL = "every layer checkpointed"
    ONE_ROW = "one row at a time"


@dataclass(frozen=True)
class Lengths:
    """How long the rows are.

    Attributes:
        longest: tokens of the longest row.
        pass_tokens: most tokens of a forward pass in training.
        answer: most tokens that evaluate lets the model say.
        supervised: the share of the tokens that the loss is computed on.
    """

    longest: int
    pass_tokens: int
    answer: int
    supervised: float


def lengths_of(spec: FineTuneSpec, dataset: DatasetFacts | None = None, longest: int = 0) -> Lengths:
    """Return how long the rows are: as prepare found them, or at most.

    Args:
        spec: the wish.
        dataset: what prepare found; None when the data is not known.
        longest: tokens of the longest row, then; 0 means spec.training.maxLength.
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
    """What a stage needs at its peak.

    Attributes:
        rung: how much it computes at once.
        parts: bytes by what they are for.
        compact: whether a whole model is trained with BF16 weights and 8-bit moments.
    """

    rung: Rung
    parts: Mapping[str, int]
    compact: bool = False

    @property
    def mib(self) -> int:
        """The sum in MiB, rounded up."""
        return -(-sum(self.parts.values()) // MIB)


@dataclass(frozen=True)
class Estimate:
    """What train needs, for each rung from the fastest on, and evaluate, which makes its batches as large as fits."""

    train: tuple[Need, ...]
    evaluate: tuple[Need, ...]

    @property
    def least_mib(self) -> int:
        """What both stages cannot do without."""
        return max(min(need.mib for need in stage) for stage in (self.train, self.evaluate))

    @property
    def full_speed_mib(self) -> int:
        """What train needs without gradient checkpointing; evaluate makes its batches as large as fits."""
        return max(self.train[0].mib, self.least_mib)

    @property
    def facts(self) -> GpuMemoryFacts:
        """The figures for the status."""
        return GpuMemoryFacts(least_mib=self.least_mib, full_speed_mib=self.full_speed_mib)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Read what `to_json` returned."""
        train, evaluate = (
            tuple(Need(Rung(need["rung"]), need["parts"], need["compact"]) for need in value[stage])
            for stage in ("train", "evaluate")
        )
        return cls(train, evaluate)

    def fastest(self, mib: int) -> Need | None:
        """Return the first need of train that fits; None when nothing does, or evaluate does not fit."""
        if mib < self.least_mib:
            return None
        return next(need for need in self.train if need.mib <= mib)


def estimate_in_child(folder: Path, spec: FineTuneSpec, added: int, lengths: Lengths) -> Estimate:
    """Return the estimate, made in a process of its own: it needs torch, and a strange configuration ends that alone.

    Args:
        folder: holds the base model's config.json.
        spec: the wish.
        added: tokens that are added to the vocabulary.
        lengths: of the rows.

    Raises:
        UnknownMemoryError: it cannot be estimated.
    """
    asked = {
        "folder": str(folder),
        "spec": spec.model_dump(mode="json", by_alias=True),
        "added": added,
        "lengths": asdict(lengths),
    }
    try:
        made = subprocess.run(
            [sys.executable, "-m", "tunemill_trainer.learn.memory"],
            input=json.dumps(asked),
            stdout=subprocess.PIPE,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
        answer = json.loads(made.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise UnknownMemoryError(f"it took longer than {_SECONDS} seconds") from error
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        raise UnknownMemoryError(f"the process that estimates it failed: {error}") from error
    if "problem" in answer:
        raise UnknownMemoryError(answer["problem"])
    return Estimate.from_json(answer)


def refuse_too_large(spec: FineTuneSpec, estimate: Estimate) -> None:
    """Raise CudaOutOfMemory if the run cannot fit spec.compute.gpuMemory, on no rung.

    Raises:
        StageError: with MiB needed, MiB given and the fields to change.
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
        f"the run does not fit spec.compute.gpuMemory: {stage} needs {estimate.least_mib} MiB at least ({shares}), and "
        f"{given} are {mib} MiB",
        f"{_smaller(spec)}, or train on a larger GPU: set spec.compute.gpuMemory to its memory, and choose it with "
        "nodeSelector in spec.podTemplates.train. `tunemill-trainer plan` shows what fits where.",
    )


def _smaller(spec: FineTuneSpec) -> str:
    """Return what to change, the most effective first."""
    if spec.adapter.method is AdapterMethod.FULL:
        return "Set spec.adapter.method to LoRA"
    if spec.base_model.quantization is not Quantization.NF4:
        return "Set spec.baseModel.quantization to NF4"
    return "Lower spec.training.maxLength, or choose a smaller spec.baseModel"


def table(estimate: Estimate) -> str:
    """Return the parts in MiB, and which common GPU takes what, for people."""
    lines = []
    for stage, needs in (("train", estimate.train), ("evaluate", estimate.evaluate)):
        for need in needs:
            weights = ", BF16 weights and 8-bit optimizer" if need.compact else ""
            lines += ["", f"{stage}, {need.rung}{weights}"]
            lines += [f"  {name:<20} {-(-size // MIB):>9,} MiB" for name, size in need.parts.items() if size]
            lines.append(f"  {'together':<20} {need.mib:>9,} MiB")
    lines += ["", f"{'GPU':<12} {'MEMORY':>12}   FITS"]
    for gpu, mib in sorted(GPUS.items(), key=lambda each: each[1]):
        fastest = estimate.fastest(mib)
        fits = "no" if fastest is None else f"yes, {fastest.rung}" + (", compact weights" if fastest.compact else "")
        lines.append(f"{gpu:<12} {mib:>8,} MiB   {fits}")
    return "\n".join(lines[1:])

"""TRL's trainer with micro-batches by tokens, AdaLoRA's schedule, and checkpoints of nothing but what is trained."""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer
from typing_extensions import override

from tunemill_trainer.learn import passes
from tunemill_trainer.learn.loss import score_for
from tunemill_trainer.learn.micro_batches import halved, split
from tunemill_trainer.learn.passes import Pass, Row, Step

TRAINABLE_FILE = "trainable.safetensors"
"""The trained parameters by name, in a checkpoint."""
_BEST_FILE = "best.safetensors"
"""The trained parameters after the best epoch, beside the checkpoints and in each of them."""
_IMPORTANCE_FILE = "adalora.safetensors"
_PATTERN_FILE = "adalora.json"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA remembers of each step; a run that is resumed without it takes other ranks away."""

_log = logging.getLogger(__name__)


class MicroBatchTrainer(SFTTrainer):  # type: ignore[misc] # trl ships no types
    """Sees a whole optimizer step as one batch and cuts it into forward passes itself.

    The loss is the mean over all supervised tokens of the step, so how it is cut changes nothing but time and memory.
    Within a step the host never waits for the device: what decides about the passes is known before they are copied,
    and figures are read when they are logged.

    Args:
        micro_batch_tokens: tokens that one forward pass may have; halved when memory is not enough.
        padded: whether rows are padded to the longest of their pass; otherwise they lie end to end.
        arguments: SFTTrainer's.
    """

    def __init__(self, micro_batch_tokens: int, *, padded: bool, **arguments: Any) -> None:  # noqa: ANN401
        super().__init__(data_collator=_step_of, **arguments)
        self._micro_batch_tokens = micro_batch_tokens
        self._padded = padded
        self._score = score_for(self.args.device)
        self._right: list[torch.Tensor] = []
        self._right_of_step: list[torch.Tensor] = []
        self._supervised = 0

    @override
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Step],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of an optimizer step, its gradients added up.

        Raises:
            torch.OutOfMemoryError: when not even a single row fits.
        """
        rows = inputs["step"].rows
        while True:
            try:
                return self._all_passes(model, rows)
            except torch.OutOfMemoryError:
                lengths = [len(row["input_ids"]) for row in rows]
                smaller = halved(lengths, self._micro_batch_tokens, padded=self._padded)
                if smaller is None:
                    raise
                self._micro_batch_tokens = smaller
            # Outside of the except block, which keeps the tensors of the failed pass alive.
            _log.warning("memory is not enough: going on with %d tokens per forward pass", smaller)
            model.zero_grad()
            torch.cuda.empty_cache()

    def _all_passes(self, model: nn.Module, rows: Sequence[Row]) -> torch.Tensor:
        supervised = sum(passes.supervised(row) for row in rows)
        self._right_of_step = []
        # A step without a supervised token has no loss.
        losses = [
            super(MicroBatchTrainer, self).training_step(model, {"pass": part}, max(supervised, 1))
            for part in self._passes(rows)
        ]
        adalora = adalora_of(model)
        if adalora is not None:
            # TRL computes the loss outside of AdaLoRA's forward, which would add this.
            config = adalora.peft_config["default"]
            self.accelerator.backward(config.orth_reg_weight * _far_from_orthogonal(adalora))
        self._right += self._right_of_step
        self._supervised += supervised
        self._total_train_tokens += sum(len(row["input_ids"]) for row in rows)
        return torch.stack(losses).sum()

    def _passes(self, rows: Sequence[Row]) -> Iterator[Pass]:
        lengths = [len(row["input_ids"]) for row in rows]
        for chosen in split(lengths, self._micro_batch_tokens, padded=self._padded):
            yield passes.make([rows[at] for at in chosen], self.args.device, padded=self._padded)

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Pass],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the part of a forward pass in the mean over the supervised tokens of the step."""
        scores = self._score(model, inputs["pass"])
        self._right_of_step.append(scores.right)
        return scores.loss / num_items_in_batch

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as SFTTrainer does, with the figures of the steps since the last log."""
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if self._supervised:
            metrics["mean_token_accuracy"] = [int(torch.stack(self._right).sum()) / self._supervised]
        self._right, self._supervised = [], 0
        super().log(logs, start_time)

    @override
    def floating_point_ops(self, inputs: dict[str, Step]) -> float:
        """Return 0: nobody reads the figure, for which all parameters are counted in each step."""
        return 0.0

    @override
    def compute_loss_context_manager(self) -> AbstractContextManager[None]:
        """Compute in mixed precision: accelerate turns it on in the model's forward alone, which is not all we call."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean loss of the supervised tokens of rows that are not trained on; draws no random number."""
        self.model.eval()
        losses = []
        for part in self._passes(rows):
            with torch.no_grad(), self.compute_loss_context_manager():
                losses.append(self._score(self.model, part).loss)
        self.model.train()
        return float(torch.stack(losses).double().sum()) / sum(passes.supervised(row) for row in rows)

    def keep_as_best(self) -> None:
        """Remember what is trained as it is now, in the next checkpoints, too."""
        save_trainable(self.model, self._best)

    def restore_best(self) -> None:
        """Take what is trained back to where `keep_as_best` was called last."""
        load_trainable(self.model, self._best)

    @property
    def _best(self) -> Path:
        return Path(self.args.output_dir) / _BEST_FILE

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_trainable(self.model, folder / TRAINABLE_FILE)
        if self._best.exists():
            shutil.copy(self._best, folder / _BEST_FILE)
        adalora = adalora_of(self.model)
        if adalora is not None:
            allocator = adalora.rankallocator
            kinds = {kind: getattr(allocator, kind) for kind in _IMPORTANCE}
            state = {f"{kind}/{name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}
            save_file(state, folder / _IMPORTANCE_FILE)
            (folder / _PATTERN_FILE).write_text(json.dumps(adalora.peft_config["default"].rank_pattern))

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trainable(self.model, folder / TRAINABLE_FILE)
        if (folder / _BEST_FILE).exists():
            shutil.copy(folder / _BEST_FILE, self._best)
        adalora = adalora_of(self.model)
        if adalora is not None:
            for name, tensor in load_file(folder / _IMPORTANCE_FILE, device=str(self.args.device)).items():
                kind, _, parameter = name.partition("/")
                getattr(adalora.rankallocator, kind)[parameter] = tensor
            adalora.peft_config["default"].rank_pattern = json.loads((folder / _PATTERN_FILE).read_text())


class RankAllocation(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Lets AdaLoRA look at the gradients of every step, and take ranks away by what it saw."""

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Look at the gradients while they are there; nothing happens with other methods."""
        adalora = adalora_of(model)
        if adalora is not None:
            adalora.update_and_allocate(state.global_step)


def save_trainable(model: nn.Module, path: Path) -> None:
    """Write the parameters that are trained, by name."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_trainable(model: nn.Module, path: Path) -> None:
    """Put the parameters that `save_trainable` wrote back in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in load_file(path).items():
            parameters[name].copy_(tensor)


def adalora_of(model: Any) -> AdaLoraModel | None:  # noqa: ANN401 - a PeftModel or a Transformers model
    """Return the AdaLoRA part of a model, if it has one."""
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, AdaLoraModel) else None


def _step_of(rows: list[Row]) -> dict[str, Step]:
    return {"step": Step(rows)}


def _far_from_orthogonal(adalora: AdaLoraModel) -> torch.Tensor:
    """Return how far AdaLoRA's singular vectors are from being orthogonal: the mean Frobenius norm, as in the paper."""
    distances = []
    for name, parameter in adalora.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(distances).mean()

"""TRL's trainer with micro-batches by tokens, AdaLoRA's schedule, and checkpoints of nothing but what is trained."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer
from typing_extensions import override

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import passes
from tunemill_trainer.learn.loss import score_for
from tunemill_trainer.learn.memory_ladder import Checkpointing, Rung
from tunemill_trainer.learn.micro_batches import halved, split
from tunemill_trainer.learn.out_of_memory import Shortage, attempt
from tunemill_trainer.learn.passes import Pass, Row, Step

TRAINABLE_FILE = "trainable.safetensors"
"""The trained parameters by name, in a checkpoint."""
_BEST_FILE = "best.safetensors"
"""The trained parameters after the best epoch, beside the checkpoints and in each of them."""
_PIECE_BYTES = 2 << 30
_RUNG_FILE = "memory.json"
_IMPORTANCE_FILE = "adalora.safetensors"
_PATTERN_FILE = "adalora.json"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA remembers of each step; a run that is resumed without it takes other ranks away."""

_log = logging.getLogger(__name__)


class MicroBatchTrainer(SFTTrainer):  # type: ignore[misc] # trl ships no types
    """Sees a whole optimizer step as one batch and cuts it into forward passes itself.

    The loss is the mean over all supervised tokens of the step, so how it is cut changes nothing but time and memory.
    When memory is not enough the whole step is computed again with less at once, and so are all later ones.
    Within a step the host never waits for the device: what decides about the passes is known before they are copied,
    and figures are read when they are logged.

    Args:
        rung: how much is computed at once at first.
        full: raises the error for which there is nothing smaller left to try.
        padded: whether rows are padded to the longest of their pass; otherwise they lie end to end.
        arguments: SFTTrainer's.
    """

    def __init__(
        self,
        rung: Rung,
        full: Callable[[Shortage, int], StageError],
        *,
        padded: bool,
        **arguments: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(data_collator=_step_of, **arguments)
        self.rung = rung
        self._full = full
        self._fragmented = False
        self._padded = padded
        self._score = score_for(self.args.device)
        self._right: list[torch.Tensor] = []
        self._right_of_step: list[torch.Tensor] = []
        self._supervised = 0
        set_checkpointing(self.model, rung.checkpointing)

    @override
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Step],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of an optimizer step, its gradients added up.

        Raises:
            StageError: CudaOutOfMemory, when not even a single row fits.
        """
        rows = inputs["step"].rows
        lengths = [len(row["input_ids"]) for row in rows]
        while isinstance(loss := attempt(lambda: self._all_passes(model, rows)), Shortage):
            # What the passes that fitted have added to the gradients is added again.
            model.zero_grad()
            if loss.is_fragmentation and not self._fragmented:
                self._fragmented = True
                _log.warning("the GPU's memory is fragmented: the step is computed again in one piece of it")
                continue
            self._descend(loss, self.rung.below(halved(lengths, self.rung.pass_tokens, padded=self._padded)), lengths)
        return loss

    def _descend(self, shortage: Shortage, rung: Rung | None, lengths: Sequence[int]) -> None:
        if rung is None:
            raise self._full(shortage, max(lengths))
        _log.warning("memory is not enough (%s): going on with %s", shortage.message, rung)
        self._go_to(rung)

    def _go_to(self, rung: Rung) -> None:
        if rung.checkpointing is not self.rung.checkpointing:
            set_checkpointing(self.model, rung.checkpointing)
        self.rung, self._fragmented = rung, False

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
        for chosen in split(lengths, self.rung.pass_tokens, padded=self._padded):
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
        """Log as SFTTrainer does: the figures of the steps since the last log, and how much was computed at once."""
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if self._supervised:
            metrics["mean_token_accuracy"] = [int(torch.stack(self._right).sum()) / self._supervised]
        self._right, self._supervised = [], 0
        if "loss" in logs:
            layers = self.rung.checkpointing.every_n_layers
            logs |= {"forward_pass_tokens": self.rung.pass_tokens, "checkpointed_layers": 1 / layers if layers else 0.0}
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
        lengths = [len(row["input_ids"]) for row in rows]
        losses: list[torch.Tensor] = []
        waiting = split(lengths, self.rung.held_out_tokens, padded=self._padded)
        while waiting:
            loss = attempt(partial(self._summed_loss, [rows[at] for at in waiting[0]]))
            if not isinstance(loss, Shortage):
                losses.append(loss)
                waiting = waiting[1:]
                continue
            left = [at for rows_of_pass in waiting for at in rows_of_pass]
            lengths_left = [lengths[at] for at in left]
            smaller = halved(lengths_left, self.rung.held_out_tokens, padded=self._padded)
            self._descend(loss, self.rung.below_held_out(smaller), lengths_left)
            cut_anew = split(lengths_left, self.rung.held_out_tokens, padded=self._padded)
            waiting = [[left[at] for at in chosen] for chosen in cut_anew]
        self.model.train()
        return float(torch.stack(losses).double().sum()) / sum(passes.supervised(row) for row in rows)

    def _summed_loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the sum of the losses of the supervised tokens of a forward pass; it stays on the device."""
        part = passes.make(rows, self.args.device, padded=self._padded)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._score(self.model, part).loss

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
        (folder / _RUNG_FILE).write_text(json.dumps(self.rung.to_json()))
        if self._best.exists():
            for file in trainable_files(self._best):
                # A second name of the same file takes no space; what is kept later is another file.
                os.link(file, folder / file.name)
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
        rung = folder / _RUNG_FILE
        if rung.exists():  # a checkpoint of an earlier version has none
            self._go_to(self.rung.lower_of(Rung.from_json(json.loads(rung.read_text()))))
        if (folder / _BEST_FILE).exists():
            for file in trainable_files(folder / _BEST_FILE):
                shutil.copy(file, self._best.with_name(file.name))
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
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        """Look at the gradients while they are there; nothing happens with other methods.

        With FP16, the gradients of a step that the loss scaler skips are infinite or no numbers. The averages of the
        importance would keep them for good, so such a step leaves the averages as they are.
        """
        adalora = adalora_of(model)
        if adalora is None:
            return
        config = adalora.peft_config["default"]
        measures = state.global_step < config.total_step - config.tfinal
        skipped = getattr(optimizer, "step_was_skipped", False)
        if measures and skipped:
            return
        if not measures and not config.rank_pattern:
            # Every step until here was skipped: nothing is known by which ranks could be taken away.
            return
        adalora.update_and_allocate(state.global_step)


def set_checkpointing(model: Any, checkpointing: Checkpointing) -> None:  # noqa: ANN401 - a PeftModel or a Transformers model
    """Have layers recompute their activations in the backward pass from now on, or keep them."""
    if checkpointing is Checkpointing.NONE:
        model.activation_checkpointing_disable()
    else:
        model.activation_checkpointing_enable(every_n_layers=checkpointing.every_n_layers)


def save_trainable(model: nn.Module, path: Path) -> None:
    """Write the parameters that are trained, by name; a file that was there before stays whole until the new one is.

    A whole model is written in several files of at most `_PIECE_BYTES`: of a GPU's tensors, safetensors has all that go
    into one file in the host's memory at once.
    """
    pieces: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if pieces[-1] and size + parameter.nbytes > _PIECE_BYTES:
            pieces.append({})
            size = 0
        pieces[-1][name] = parameter.detach().contiguous()
        size += parameter.nbytes
    for number, tensors in enumerate(pieces):
        partial_file = path.with_suffix(".partial")
        save_file(tensors, partial_file)
        partial_file.rename(_piece(path, number))


def load_trainable(model: nn.Module, path: Path) -> None:
    """Put the parameters that `save_trainable` wrote back in place."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for piece in trainable_files(path):
            for name, tensor in load_file(piece).items():
                parameters[name].copy_(tensor)


def trainable_files(path: Path) -> list[Path]:
    """Return the files that `save_trainable` wrote."""
    return [path, *sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))]


def _piece(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}-{number:04}") if number else path


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

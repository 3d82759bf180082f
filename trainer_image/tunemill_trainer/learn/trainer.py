"""TRL's trainer with micro-batches by tokens, AdaLoRA's schedule, and checkpoints of nothing but what is trained."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
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
from tunemill_trainer.learn.held_out import Row
from tunemill_trainer.learn.loss import score
from tunemill_trainer.learn.memory_ladder import Checkpointing, Rung
from tunemill_trainer.learn.micro_batches import halved, split
from tunemill_trainer.learn.out_of_memory import Shortage, attempt
from tunemill_trainer.prepared import IGNORED

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

    Args:
        rung: how much is computed at once at first.
        full: raises the error for which there is nothing smaller left to try.
        arguments: SFTTrainer's.
    """

    def __init__(self, rung: Rung, full: Callable[[Shortage, int], StageError], **arguments: Any) -> None:  # noqa: ANN401
        super().__init__(**arguments)
        self.rung = rung
        self._full = full
        self._fragmented = False
        set_checkpointing(self.model, rung.checkpointing)

    @override
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of an optimizer step, its gradients added up.

        Raises:
            StageError: CudaOutOfMemory, when not even a single row fits.
        """
        supervised = (inputs["labels"][:, 1:] != IGNORED).sum()
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        counted = self._counted()
        while isinstance(loss := attempt(lambda: self._all_parts(model, inputs, supervised)), Shortage):
            # What the passes that fitted have added to gradients and figures is added again.
            model.zero_grad()
            self._count_from(counted)
            if loss.is_fragmentation and not self._fragmented:
                self._fragmented = True
                _log.warning("the GPU's memory is fragmented: the step is computed again in one piece of it")
                continue
            self._descend(loss, self.rung.below(halved(lengths, self.rung.pass_tokens)), lengths)
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

    def _counted(self) -> tuple[int, dict[str, list[Any]]]:
        """Return what the figures of the next log add up so far."""
        return self._total_train_tokens, {name: list(values) for name, values in self._metrics["train"].items()}

    def _count_from(self, counted: tuple[int, dict[str, list[Any]]]) -> None:
        """Forget what was added to the figures since `_counted` returned this."""
        self._total_train_tokens, figures = counted
        metrics = self._metrics["train"]
        metrics.clear()
        metrics.update({name: list(values) for name, values in figures.items()})

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with each loss how much was computed at once."""
        if "loss" in logs:
            layers = self.rung.checkpointing.every_n_layers
            logs |= {"forward_pass_tokens": self.rung.pass_tokens, "checkpointed_layers": 1 / layers if layers else 0.0}
        super().log(logs, start_time)

    def _all_parts(self, model: nn.Module, inputs: dict[str, torch.Tensor], supervised: torch.Tensor) -> torch.Tensor:
        losses = [
            super(MicroBatchTrainer, self).training_step(model, part, supervised)
            for part in _parts(inputs, self.rung.pass_tokens)
        ]
        adalora = adalora_of(model)
        if adalora is not None:
            # TRL computes the loss outside of AdaLoRA's forward, which would add this.
            config = adalora.peft_config["default"]
            self.accelerator.backward(config.orth_reg_weight * _far_from_orthogonal(adalora))
        return torch.stack(losses).sum()

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the part of a forward pass in the mean over the supervised tokens of the step; logs as SFTTrainer."""
        scores = score(model, inputs)
        self._total_train_tokens += int(inputs["attention_mask"].sum())
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if scores.tokens:
            metrics["mean_token_accuracy"].append(scores.right / scores.tokens)
        # A step without a supervised token has no loss.
        return scores.loss / max(int(num_items_in_batch or 0), 1)

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean loss of the supervised tokens of rows that are not trained on; draws no random number."""
        self.model.eval()
        lengths = [len(row["input_ids"]) for row in rows]
        total = count = 0.0
        waiting = split(lengths, self.rung.held_out_tokens)
        while waiting:
            chosen = [rows[i] for i in waiting[0]]
            loss = attempt(partial(self._summed_loss, chosen))
            if not isinstance(loss, Shortage):
                total, count = total + loss[0], count + loss[1]
                waiting = waiting[1:]
                continue
            left = [i for rows_of_pass in waiting for i in rows_of_pass]
            lengths_left = [lengths[i] for i in left]
            smaller = halved(lengths_left, self.rung.held_out_tokens)
            self._descend(loss, self.rung.below_held_out(smaller), lengths_left)
            waiting = [[left[i] for i in chosen] for chosen in split(lengths_left, self.rung.held_out_tokens)]
        self.model.train()
        return total / count

    def _summed_loss(self, rows: Sequence[Row]) -> tuple[float, int]:
        """Return the sum of the losses of the supervised tokens of a forward pass, and how many there are."""
        inputs = self._prepare_inputs(self.data_collator(list(rows)))
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = score(self.model, inputs)
        return float(scores.loss), int(scores.tokens)

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
        if not measures and not adalora.rankallocator.exp_avg_ipt:
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


def _parts(inputs: dict[str, torch.Tensor], tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    lengths = inputs["attention_mask"].sum(dim=1)
    for rows in split(lengths.tolist(), tokens):
        # Padding is on the right.
        longest = int(lengths[rows].max())
        yield {name: tensor[rows, :longest] for name, tensor in inputs.items()}


def _far_from_orthogonal(adalora: AdaLoraModel) -> torch.Tensor:
    """Return how far AdaLoRA's singular vectors are from being orthogonal: the mean Frobenius norm, as in the paper."""
    distances = []
    for name, parameter in adalora.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(distances).mean()

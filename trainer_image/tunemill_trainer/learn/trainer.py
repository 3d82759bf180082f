"""TRL's SFTTrainer with token-bounded micro-batches, AdaLoRA's schedule, and checkpoints of trained parameters only."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
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

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import passes
from tunemill_trainer.learn.answer_loss import losses_of_passes
from tunemill_trainer.learn.gradients import GradientSum
from tunemill_trainer.learn.loss import score_for
from tunemill_trainer.learn.memory_settings import Checkpointing, MemorySettings
from tunemill_trainer.learn.micro_batches import deal, halved, split
from tunemill_trainer.learn.out_of_memory import Shortage, attempt
from tunemill_trainer.learn.passes import Pass, Row, Step, step_of
from tunemill_trainer.process.ranks import Ranks

TRAINABLE_FILE = "trainable.safetensors"
"""The trained parameters of a checkpoint, by name."""
_BEST_FILE = "best.safetensors"
"""The trained parameters after the best epoch, in the folder of the checkpoints and in each of them."""
_PIECE_BYTES = 2 << 30
_MEMORY_FILE = "memory.json"
_IMPORTANCE_FILE = "adalora.safetensors"
_PATTERN_FILE = "adalora.json"
_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""The running averages of AdaLoRA; without them, a resumed run would prune other ranks."""

_log = logging.getLogger(__name__)


class MicroBatchTrainer(SFTTrainer):  # type: ignore[misc] # trl ships no types
    """Gets an optimizer step as one batch and splits it into forward passes.

    The loss is the mean over all supervised tokens of the step, so the split affects time and memory only. When memory
    is not enough, the step is computed again with settings that need less, which later steps keep. Within a step the
    host does not wait for the device: the passes are planned from lengths that the host knows, and metrics are read
    when they are logged.

    With several ranks, each one gets the whole step and computes its share of the rows. At the end of the step, one
    exchange adds the gradients and losses, and tells all ranks whether one of them has to stop or needed less memory.

    Args:
        memory_settings: the settings at the start.
        too_large: returns the error when no smaller settings are left, from the shortage and the longest row's tokens.
        padded: whether rows are padded to the longest of their pass; otherwise they are concatenated.
        ranks: the processes that train together.
        arguments: arguments of SFTTrainer.
    """

    def __init__(
        self,
        memory_settings: MemorySettings,
        too_large: Callable[[Shortage, int], StageError],
        *,
        padded: bool,
        ranks: Ranks,
        **arguments: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(data_collator=step_of, **arguments)
        self.memory_settings = memory_settings
        self._ranks = ranks
        self._dealt_tokens = memory_settings.pass_tokens
        self._saved_memory = False
        self._gradients: GradientSum | None = None
        self._busy: list[tuple[float, float]] = []
        """Seconds of the passes of each step since the last log: mean over the ranks, and those of the slowest one."""
        self._too_large = too_large
        self._fragmented = False
        self._padded = padded
        self._score = score_for(self.args.device)
        self._right: list[torch.Tensor] = []
        self._right_of_step: list[torch.Tensor] = []
        self._supervised = 0
        set_checkpointing(self.model, memory_settings.checkpointing)

    @override
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Step],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return the loss of an optimizer step, and accumulate its gradients.

        Raises:
            StageError: CudaOutOfMemory, when not even a single row fits.
        """
        step = inputs["step"].rows
        supervised = sum(passes.supervised(row) for row in step)
        rows = self._share(step)
        lengths = [len(row["input_ids"]) for row in rows]
        started_at = time.perf_counter()
        model.train()  # also without a pass: TRL names the metrics by the mode
        if self._ranks.count > 1:
            self._gradients = self._gradients or self._gradient_sum(model)
            self._gradients.start()
        while isinstance(loss := attempt(lambda: self._all_passes(model, rows, supervised)), Shortage):
            # Discard the gradients of the passes that did fit: all rows are computed again.
            if self._gradients is None:
                model.zero_grad()
            else:
                self._gradients.start()
            if loss.is_fragmentation and not self._fragmented:
                self._fragmented = True
                _log.warning("the GPU's memory is fragmented: retrying the step after releasing it")
                continue
            smaller = halved(lengths, self.memory_settings.pass_tokens, padded=self._padded)
            self._save_memory(loss, self.memory_settings.reduced(smaller), lengths)
        loss = self._add_over_ranks(loss, started_at)
        self._right += self._right_of_step
        self._supervised += supervised
        self._total_train_tokens += sum(len(row["input_ids"]) for row in step)
        return loss

    def _share(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows that this rank computes. All ranks deal in the same way, whatever their memory settings."""
        lengths = [len(row["input_ids"]) for row in rows]
        dealt = deal(lengths, self._ranks.count, self._dealt_tokens if self._padded else 0)
        return [rows[at] for at in dealt[self._ranks.index]]

    def _gradient_sum(self, model: nn.Module) -> GradientSum:
        return GradientSum(model.parameters(), self._ranks, figures=4 + self._ranks.count)

    def _add_over_ranks(self, loss: torch.Tensor, started_at: float) -> torch.Tensor:
        """Return the loss of the whole step. Gradients, metrics and memory settings become those of all ranks.

        Args:
            loss: the contribution of this rank.
            started_at: when it started its passes, in seconds.
        """
        if self._gradients is None:
            return loss
        own_right = torch.stack(self._right_of_step).sum() if self._right_of_step else 0.0
        if loss.device.type == "cuda":
            torch.cuda.synchronize()
        busy = [0.0] * self._ranks.count
        busy[self._ranks.index] = time.perf_counter() - started_at
        flags = [float(self._ranks.stop.signal.requested), float(self._saved_memory)]
        total, right, stop, saved_memory, *seconds = self._gradients.add([loss, own_right, *flags, *busy])
        self._busy.append((sum(seconds) / len(seconds), max(seconds)))
        self._right_of_step = [torch.tensor(int(right))]
        self._ranks.stop.agree(any_requested=stop > 0)
        if saved_memory:
            for settings in self._ranks.gather(self.memory_settings):
                self._use(self.memory_settings.minimum_with(settings))
            self._saved_memory = False
        return torch.tensor(total, device=loss.device)

    def _save_memory(self, shortage: Shortage, settings: MemorySettings | None, lengths: Sequence[int]) -> None:
        """Continue with settings that need less memory, or raise an error when there are none."""
        if settings is None:
            raise self._too_large(shortage, max(lengths, default=0))
        _log.warning("not enough memory (%s): continuing with %s", shortage.message, settings)
        self._use(settings)
        self._saved_memory = True

    def _use(self, settings: MemorySettings) -> None:
        if settings.checkpointing is not self.memory_settings.checkpointing:
            set_checkpointing(self.model, settings.checkpointing)
        self.memory_settings, self._fragmented = settings, False

    def _all_passes(self, model: nn.Module, rows: Sequence[Row], supervised: int) -> torch.Tensor:
        """Return the contribution of some rows to the loss of a step, and add to its gradients.

        Args:
            model: the model.
            rows: the rows; with several ranks there may be none.
            supervised: number of supervised tokens of the complete step.
        """
        self._right_of_step = []
        # A step without a supervised token has no loss.
        losses = [
            super(MicroBatchTrainer, self).training_step(model, {"pass": part}, max(supervised, 1))
            for part in self._passes(rows)
        ]
        adalora = adalora_of(model)
        if adalora is not None and self._ranks.first:
            # AdaLoRA's forward adds this term, but TRL computes the loss outside of it.
            config = adalora.peft_config["default"]
            self.accelerator.backward(config.orth_reg_weight * _orthogonality_penalty(adalora))
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.args.device)

    def _passes(self, rows: Sequence[Row]) -> Iterator[Pass]:
        lengths = [len(row["input_ids"]) for row in rows]
        for chosen in split(lengths, self.memory_settings.pass_tokens, padded=self._padded):
            yield passes.make([rows[at] for at in chosen], self.args.device, padded=self._padded)

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Pass],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Return a forward pass's contribution to the mean loss over the supervised tokens of the step."""
        scores = self._score(model, inputs["pass"])
        self._right_of_step.append(scores.right)
        return scores.loss / num_items_in_batch

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics of SFTTrainer for the steps since the last log, and the memory settings."""
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        if self._supervised:
            metrics["mean_token_accuracy"] = [int(torch.stack(self._right).sum()) / self._supervised]
        self._right, self._supervised = [], 0
        if "loss" in logs:
            layers = self.memory_settings.checkpointing.every_n_layers
            logs["forward_pass_tokens"] = self.memory_settings.pass_tokens
            logs["checkpointed_layers"] = 1 / layers if layers else 0.0
        if self._busy:
            mean, slowest = (sum(seconds) for seconds in zip(*self._busy, strict=True))
            logs["waiting_share"] = 1 - mean / slowest
            self._busy = []
        super().log(logs, start_time)

    @override
    def floating_point_ops(self, inputs: dict[str, Step]) -> float:
        """Return 0. The estimate is not used, and would count all parameters in each step."""
        return 0.0

    @override
    def compute_loss_context_manager(self) -> AbstractContextManager[None]:
        """Use autocast for the complete loss: accelerate enables it for the model's forward method only."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def mean_loss(self, rows: Sequence[Row]) -> float:
        """Return the mean loss of the supervised tokens of held-out rows. It does not use random numbers."""
        self.model.eval()
        mine = self._share(rows)
        losses = self._held_out_losses(mine) if mine else []
        self.model.train()
        summed = torch.stack(losses).double().sum() if losses else torch.zeros((), dtype=torch.float64)
        summed = summed.to(self.args.device)
        self._ranks.sum(summed)
        return float(summed) / sum(passes.supervised(row) for row in rows)

    def _held_out_losses(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Return the summed losses of the forward passes of some rows."""

        def smaller(shortage: Shortage, lengths: Sequence[int], tokens: int | None) -> int:
            self._save_memory(shortage, self.memory_settings.reduced_held_out(tokens), lengths)
            return self.memory_settings.held_out_tokens

        tokens, lengths = self.memory_settings.held_out_tokens, [len(row["input_ids"]) for row in rows]
        return losses_of_passes(self._summed_loss, rows, lengths, tokens, smaller, padded=self._padded)

    def _summed_loss(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return the summed loss of the supervised tokens of a forward pass, as a tensor on the device."""
        part = passes.make(rows, self.args.device, padded=self._padded)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self._score(self.model, part).loss

    def keep_as_best(self) -> None:
        """Save the trained parameters as those of the best epoch. Later checkpoints include them."""
        if self._ranks.first:
            save_trainable(self.model, self._best)

    def restore_best(self) -> None:
        """Load the parameters that `keep_as_best` saved last. Only rank 0 has them, which commits the result."""
        if self._ranks.first:
            load_trainable(self.model, self._best)

    @property
    def _best(self) -> Path:
        return Path(self.args.output_dir) / _BEST_FILE

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, in rank 0 only: the others have the same parameters and moments."""
        if self._ranks.first:
            super()._save_checkpoint(model, trial)

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random numbers of dropout. The ranks other than the first one start new ones."""
        super()._load_rng_state(checkpoint)
        self.seed_rank()

    def seed_rank(self) -> None:
        """Give each rank other random numbers for dropout, except the first one."""
        if not self._ranks.first:
            torch.manual_seed(self.args.seed + 1_000_003 * self._ranks.index + self.state.global_step)

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_trainable(self.model, folder / TRAINABLE_FILE)
        (folder / _MEMORY_FILE).write_text(json.dumps(self.memory_settings.to_json()))
        if self._best.exists():
            for file in trainable_files(self._best):
                # A hard link takes no space. Later best parameters are written to a new file.
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
        memory = folder / _MEMORY_FILE
        if memory.exists():  # checkpoints of earlier versions have none
            saved = MemorySettings.from_json(json.loads(memory.read_text()))
            self._use(self.memory_settings.minimum_with(saved))
        if (folder / _BEST_FILE).exists() and self._ranks.first:
            for file in trainable_files(folder / _BEST_FILE):
                shutil.copy(file, self._best.with_name(file.name))
        adalora = adalora_of(self.model)
        if adalora is not None:
            for name, tensor in load_file(folder / _IMPORTANCE_FILE, device=str(self.args.device)).items():
                kind, _, parameter = name.partition("/")
                getattr(adalora.rankallocator, kind)[parameter] = tensor
            adalora.peft_config["default"].rank_pattern = json.loads((folder / _PATTERN_FILE).read_text())


class RankAllocation(TrainerCallback):  # type: ignore[misc] # transformers ships no types
    """Updates AdaLoRA's importance scores after every step, and prunes ranks by them."""

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
        """Update the scores before the gradients are cleared. Does nothing for other methods.

        With FP16, a step that the loss scaler skips has infinite or NaN gradients. They would stay in the running
        averages of the scores forever, so such a step is ignored.
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
            # All steps so far were skipped: there are no scores to prune by.
            return
        adalora.update_and_allocate(state.global_step)


def set_checkpointing(model: Any, checkpointing: Checkpointing) -> None:  # noqa: ANN401 - a PeftModel or a Transformers model
    """Enable or disable gradient checkpointing."""
    if checkpointing is Checkpointing.NONE:
        model.activation_checkpointing_disable()
    else:
        model.activation_checkpointing_enable(every_n_layers=checkpointing.every_n_layers)


def save_trainable(model: nn.Module, path: Path) -> None:
    """Save the trained parameters by name. An existing file is replaced atomically.

    A full model is split into files of at most `_PIECE_BYTES`, because safetensors copies all tensors of a file from
    the GPU to the host's memory at once.
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
    """Load the parameters that `save_trainable` wrote into the model."""
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
    """Return the AdaLoRA tuner of a model, or None."""
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, AdaLoraModel) else None


def _orthogonality_penalty(adalora: AdaLoraModel) -> torch.Tensor:
    """Return AdaLoRA's orthogonality penalty: the mean Frobenius norm of PᵀP - I and QQᵀ - I, as in the paper."""
    distances = []
    for name, parameter in adalora.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            product = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            distances.append(torch.linalg.norm(product - torch.eye(len(product), device=product.device)))
    return torch.stack(distances).mean()

"""Direct preference optimization: TRL's DPOTrainer continues to train an adapter on pairs of answers.

The reference is the adapter at the start. Its log-probabilities are computed once before the first step, so that
neither a second adapter nor a second model has to be in memory.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput
from typing_extensions import override

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.mistakes import Pair
from tunemill_trainer.learn import devices, new_rows, sft
from tunemill_trainer.learn.adapter import load_weights
from tunemill_trainer.learn.answer_loss import losses_of_passes
from tunemill_trainer.learn.loss import target_figures
from tunemill_trainer.learn.memory_settings import MemorySettings
from tunemill_trainer.learn.micro_batches import halved, split
from tunemill_trainer.learn.order import row_order
from tunemill_trainer.learn.out_of_memory import Shortage, attempt
from tunemill_trainer.learn.passes import Pass, Step, step_of
from tunemill_trainer.learn.trainer import set_checkpointing
from tunemill_trainer.prepared import IGNORED
from tunemill_trainer.process import tracing

_FIGURES = ("log_probs", "entropy", "mean_logits", "is_top1")
"""What TRL's loss and metrics need for each token."""
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""TRL's columns for the log-probabilities of the reference."""

_log = logging.getLogger(__name__)

_Row = dict[str, Any]
"""A pair as a row: the token ids of `Pair`, and the columns of `_REFERENCE`."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        model: the PeftModel.
        steps: optimizer steps.
        history: the log entries, with step, loss, learning_rate, rewards/margins and more.
    """

    model: Any
    steps: int
    history: list[dict[str, Any]]


@tracing.step("preference steps")
def train(
    run: sft.Run,
    model: Any,  # noqa: ANN401 - transformers ships no types
    adapter: PeftConfig,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    beta: float,
    callbacks: list[TrainerCallback],
) -> Result:
    """Train an adapter on pairs.

    Args:
        run: the settings. `start` is the file with the adapter's weights.
        model: the base model, with extended vocabulary.
        adapter: the configuration of the adapter.
        tokenizer: required by TRL.
        pairs: the pairs, at least one.
        beta: the strength with which the model is kept close to the reference.
        callbacks: additional callbacks of the trainer.

    Raises:
        StageError: CudaOutOfMemory, when not even a single pair fits; what the callbacks raise.
    """
    assert run.start is not None
    order = row_order([pair.longer for pair in pairs], run.training.seed, run.plan.steps * run.training.batch_size)
    trainer = PairTrainer(
        MemorySettings(run.plan.micro_batch_tokens, run.plan.micro_batch_tokens),
        partial(_no_pair_fits, run),
        model=model,
        # The model's log-probabilities come from `target_figures`: the loss of a mixture of experts is not added.
        args=sft.trainer_config(run, DPOConfig, beta=beta, save_strategy="no", router_aux_loss_coef=0.0),
        train_dataset=datasets.Dataset.from_list([pair.to_json() for pair in pairs]),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    sft.train_in_full_precision(trainer.model)
    load_weights(trainer.model, run.start)
    new_rows.use_in_place(trainer.model)
    trainer.use_as_reference()
    trainer.train_dataset = trainer.train_dataset.select(order)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Result(trainer.model, trainer.state.global_step, history)


class PairTrainer(DPOTrainer):  # type: ignore[misc] # trl ships no types
    """Gets an optimizer step as one batch and splits it into forward passes of whole pairs.

    The loss is the mean over all pairs of the step, so the split affects time and memory only. When memory is not
    enough, the step is computed again with settings that need less, which later steps keep.

    Args:
        memory_settings: the settings at the start.
        too_large: returns the error when no smaller settings are left, from the shortage and the longest row's tokens.
        arguments: arguments of DPOTrainer. The rows of the data set have the columns of `Pair.to_json`.
    """

    def __init__(
        self,
        memory_settings: MemorySettings,
        too_large: Callable[[Shortage, int], StageError],
        **arguments: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(data_collator=step_of, **arguments)
        self.memory_settings = memory_settings
        self._too_large = too_large
        self._pad = DataCollatorForPreference(pad_token_id=0)  # any token: the attention mask hides it
        set_checkpointing(self.model, memory_settings.checkpointing)

    @override
    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any) -> datasets.Dataset:
        """Return the rows unchanged: they are token ids already."""
        return dataset

    def use_as_reference(self) -> None:
        """Make the current adapter the reference, by adding its log-probabilities to the rows."""
        dataset: datasets.Dataset = self.train_dataset  # type: ignore[has-type]
        rows, order = list(dataset), list[int]()

        def log_probabilities(numbers: Sequence[int]) -> torch.Tensor:
            inputs = self._prepare_inputs(self._pad([rows[at] for at in numbers]))
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
            with torch.no_grad(), self.compute_loss_context_manager():
                figures = _figures(self.model, inputs["input_ids"], inputs["attention_mask"], labels, ("log_probs",))
            order.extend(numbers)
            return torch.stack(figures.log_probs.sum(dim=1).float().chunk(2), dim=1).cpu()

        def smaller(shortage: Shortage, lengths: Sequence[int], tokens: int | None) -> int:
            self._save_memory(shortage, self.memory_settings.reduced_held_out(tokens), lengths)
            return self.memory_settings.held_out_tokens

        self.model.eval()
        tokens, lengths = self.memory_settings.held_out_tokens, [_padded(row) for row in rows]
        found = losses_of_passes(log_probabilities, range(len(rows)), lengths, tokens, smaller, padded=True)
        in_order = torch.cat(found)[torch.tensor(order).argsort()]
        for column, values in zip(_REFERENCE, in_order.T, strict=True):
            dataset = dataset.add_column(column, values.tolist())
        self.train_dataset = dataset
        self.precompute_ref_logps = True

    @override
    def training_step(self, model: nn.Module, inputs: dict[str, Step], *_: Any) -> torch.Tensor:
        """Return the loss of an optimizer step, and accumulate its gradients.

        Raises:
            StageError: CudaOutOfMemory, when not even a single pair fits.
        """
        pairs = inputs["step"].rows
        lengths = [_padded(pair) for pair in pairs]
        while isinstance(loss := attempt(lambda: self._all_passes(model, pairs, lengths)), Shortage):
            model.zero_grad()  # all pairs are computed again
            smaller = halved(lengths, self.memory_settings.pass_tokens, padded=True)
            self._save_memory(loss, self.memory_settings.reduced(smaller), lengths)
        return loss

    def _all_passes(self, model: nn.Module, pairs: Sequence[_Row], lengths: Sequence[int]) -> torch.Tensor:
        losses = []
        for chosen in split(lengths, self.memory_settings.pass_tokens, padded=True):
            part = self._pad([pairs[at] for at in chosen])
            losses.append(super().training_step(model, part, len(chosen) / len(pairs)))
        return torch.stack(losses).sum()

    def _save_memory(self, shortage: Shortage, settings: MemorySettings | None, lengths: Sequence[int]) -> None:
        """Continue with settings that need less memory, or raise an error when there are none."""
        if settings is None:
            raise self._too_large(shortage, max(lengths) // 2)
        _log.warning("not enough memory (%s): continuing with %s", shortage.message, settings)
        set_checkpointing(self.model, settings.checkpointing)
        self.memory_settings = settings

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """Return a forward pass's contribution to the mean loss over the pairs of the step.

        Args:
            model: the model.
            inputs: the pairs, as TRL's collator pads them.
            return_outputs: not supported.
            num_items_in_batch: the fraction of the step's pairs that are in this pass.
        """

        def scored(
            input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, **_: object
        ) -> FusedCausalLMOutput:
            return _figures(model, input_ids, attention_mask, labels, _FIGURES)

        # TRL's own function for the log-probabilities has no gradient for the rows of added tokens.
        return self._compute_loss(scored, inputs, return_outputs) * num_items_in_batch

    @override
    def compute_loss_context_manager(self) -> AbstractContextManager[None]:
        """Use autocast for the complete loss: accelerate enables it for the model's forward method only."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    @override
    def floating_point_ops(self, inputs: dict[str, Step]) -> float:
        """Return 0. The estimate is not used, and would count all parameters in each step."""
        return 0.0


def _figures(
    model: Any,  # noqa: ANN401
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    names: tuple[str, ...],
) -> FusedCausalLMOutput:
    """Return figures of the labelled tokens as TRL's model with a fused head does, 0 where there is no label.

    Args:
        model: the PeftModel.
        input_ids: shape (rows, tokens).
        attention_mask: shape (rows, tokens).
        labels: shape (rows, tokens).
        names: the figures.

    Returns:
        Tensors of shape (rows, tokens - 1).
    """
    targets = labels[:, 1:]
    mask = targets != IGNORED
    predicts = nn.functional.pad(mask, (0, 1)).flatten().nonzero()[:, 0]
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    found = target_figures(model, Pass(inputs, predicts, targets[mask], copied=0), names)
    log_probs, entropy, _, mean_logits, is_top1 = (
        None if each is None else each.new_zeros(mask.shape).masked_scatter(mask, each) for each in found
    )
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, mean_logits=mean_logits, is_top1=is_top1)


def _padded(row: _Row) -> int:
    """Return the tokens of a pair in a padded pass: two rows of the longer one's length."""
    return 2 * Pair(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]).longer


def _no_pair_fits(run: sft.Run, shortage: Shortage, row_tokens: int) -> StageError:
    what = f"a pair of two rows of up to {row_tokens} tokens, with gradient checkpointing of every layer,"
    return devices.out_of_memory(run.device, shortage, what, run.advice(row_tokens))

"""The training run: TRL's SFTTrainer on the prepared rows, optionally resumed from a checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow.compute as pc
import torch
from peft import PeftConfig
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from trl import SFTConfig
from tunemill_api.training import Scheduler, Training

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import attention, devices, new_rows
from tunemill_trainer.learn.adapter import load_weights
from tunemill_trainer.learn.checkpoints import check_disk_space
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.full import WIDE, StochasticAdamW8bit, WeightFormat
from tunemill_trainer.learn.held_out import LOSS, Best, HeldOutLoss, best_of, ends_of_epochs
from tunemill_trainer.learn.memory_settings import MemorySettings
from tunemill_trainer.learn.order import row_order
from tunemill_trainer.learn.out_of_memory import Shortage
from tunemill_trainer.learn.passes import Row
from tunemill_trainer.learn.plan import Plan
from tunemill_trainer.learn.trainer import MicroBatchTrainer, RankAllocation
from tunemill_trainer.process import tracing
from tunemill_trainer.process.ranks import Ranks

Config = TypeVar("Config", bound=TrainingArguments)

_SCHEDULERS = {Scheduler.COSINE: "cosine", Scheduler.LINEAR: "linear", Scheduler.CONSTANT: "constant_with_warmup"}


@dataclass(frozen=True)
class Run:
    """The settings of a run.

    Attributes:
        training: spec.training, with the learning rate as a number.
        plan: number of steps and size of a forward pass.
        device: where it trains.
        dtype: the number format of the computation.
        folder: the folder for checkpoints.
        weights: the format of the weights with the method Full; adapter weights are FP32.
        advice: returns which fields of the spec to change when a row of this many tokens does not fit into memory.
        kept_on_disk: how many checkpoints to keep on the disk.
        ranks: the processes that train together.
        start: the weights of the adapter from which training starts; None starts with new ones.
    """

    training: Training
    plan: Plan
    device: Device
    dtype: torch.dtype
    folder: Path
    weights: WeightFormat = WIDE
    advice: Callable[[int], str] = lambda _tokens: ""
    kept_on_disk: int = 1
    ranks: Ranks = field(default_factory=Ranks)
    start: Path | None = None


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        model: the PeftModel, or the full model; with early stopping, that of the best epoch.
        steps: optimizer steps, including those of earlier attempts; fewer than planned after a request to stop.
        finished: whether the run is complete, either by its number of steps or by early stopping.
        history: the log entries of all attempts, with step, epoch, loss, learning_rate, grad_norm and more.
        held_out: an entry per epoch with step, epoch and held_out_loss.
        best: the epoch with the lowest held-out loss; None without held-out rows.
        memory_settings: those at the end.
    """

    model: Any
    steps: int
    finished: bool
    history: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    best: Best | None
    memory_settings: MemorySettings


def read_rows(path: Path) -> datasets.Dataset:
    """Return the training rows, memory-mapped from disk, with an additional column `length`."""
    rows = datasets.Dataset.from_parquet(str(path), keep_in_memory=False)
    return rows.add_column("length", pc.list_value_length(rows.data.column("input_ids")).to_pylist())


@tracing.step("train steps")
def train(
    run: Run,
    model: Any,  # noqa: ANN401 - transformers ships no types
    adapter: PeftConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    callbacks: list[TrainerCallback],
    checkpoint: Path | None,
    held_out: Sequence[Row] = (),
) -> Result:
    """Train an adapter or the full model.

    Args:
        run: the settings.
        model: the base model, with extended vocabulary.
        adapter: the configuration of the adapter; None trains the full model.
        tokenizer: required by TRL.
        rows: have input_ids, labels and length.
        callbacks: additional callbacks of the trainer.
        checkpoint: the checkpoint to resume from; None starts from the beginning.
        held_out: rows on which the loss is measured after every epoch.

    Returns:
        The trained model and its log. A resumed run logs the same figures as an uninterrupted one, on the CPU bit for
        bit.
    """
    lengths = rows["length"][:]
    training, plan = run.training, run.plan
    seen = plan.steps * training.batch_size if training.max_steps else training.epochs * len(rows)
    # All epochs as one sequence in a fixed order: Transformers' samplers share their random generator with dropout, so
    # that a run resumed in its second epoch would get other rows.
    ordered = rows.remove_columns("length").select(row_order(lengths, training.seed, seen))
    set_seed(training.seed)
    with attention.end_to_end(model, torch.device(run.device.torch_name), run.dtype) as laid_end_to_end:
        trainer = MicroBatchTrainer(
            MemorySettings(plan.micro_batch_tokens, plan.micro_batch_tokens),
            partial(_no_row_fits, run),
            padded=not laid_end_to_end,
            ranks=run.ranks,
            model=model,
            args=trainer_config(
                run,
                SFTConfig,
                dataset_kwargs={"skip_prepare_dataset": True},  # prepare has tokenized and masked the rows
                save_strategy="steps",
                save_steps=training.checkpoint.every_steps,
                save_total_limit=run.kept_on_disk,
            ),
            train_dataset=ordered,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[RankAllocation(), *callbacks],
            optimizer_cls_and_kwargs=_compact_optimizer(run) if run.weights.compact else None,
        )
        trainer.remove_callback(PrinterCallback)
        if not run.weights.compact:
            train_in_full_precision(trainer.model)
        if run.start is not None:
            load_weights(trainer.model, run.start)
        new_rows.use_in_place(trainer.model)
        patience = training.early_stopping.patience
        if run.ranks.first:
            _check_disk_space(run, trainer)
        # Equal already, unless the ranks have different devices, which round differently.
        run.ranks.copy_from_first([each.data for each in trainer.model.parameters() if each.requires_grad])
        trainer.seed_rank()
        if held_out:
            after = ends_of_epochs(len(rows), training.batch_size, plan.steps)
            trainer.add_callback(HeldOutLoss(trainer, held_out, after, patience))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    log = trainer.state.log_history
    for entry in log:
        entry["epoch"] = round(entry["step"] * training.batch_size / len(rows), 4)
    steps, best = trainer.state.global_step, best_of(log)
    if patience and best is not None and best.worse:
        trainer.restore_best()
    return Result(
        model=trainer.model,
        steps=steps,
        finished=steps == plan.steps or bool(patience and best and best.worse >= patience),
        history=[entry for entry in log if "loss" in entry],
        held_out=[entry for entry in log if LOSS in entry],
        best=best,
        memory_settings=trainer.memory_settings,
    )


def trainer_config(run: Run, kind: type[Config], **settings: Any) -> Config:  # noqa: ANN401
    """Return the configuration of a trainer of TRL.

    Args:
        run: the settings of the run.
        kind: the class of the configuration.
        settings: further arguments of this class.
    """
    training, plan = run.training, run.plan
    config: Config = kind(
        output_dir=str(run.folder),
        max_steps=plan.steps,
        per_device_train_batch_size=training.batch_size,  # the trainer splits it into passes
        gradient_accumulation_steps=1,
        learning_rate=float(training.learning_rate),
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=float(training.warmup_ratio),  # a value below 1 is a ratio
        seed=training.seed,
        train_sampling_strategy="sequential",
        bf16=run.dtype is torch.bfloat16,
        fp16=run.dtype is torch.float16,
        use_cpu=run.device.kind == "cpu",
        dataloader_pin_memory=False,  # the loader has plain lists; `passes` creates and pins the tensors
        # The trainer enables it when memory is not enough.
        gradient_checkpointing=False,
        # The rows have token ids, and those that are too long were left out.
        max_length=None,
        logging_steps=plan.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    # Outside a cluster, more GPUs may be visible than requested, and Transformers would use all with DataParallel.
    config._n_gpu = min(1, config.n_gpu)  # noqa: SLF001
    return config


def _check_disk_space(run: Run, trainer: MicroBatchTrainer) -> None:
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    weights = sum(parameter.nbytes for parameter in trained)
    # The two moments of AdamW, in 8 bits with compact weights, otherwise in FP32.
    moments = 2 * sum(parameter.numel() for parameter in trained) * (1 if run.weights.compact else 4)
    best = weights if run.training.early_stopping.patience else 0
    check_disk_space(run.folder, weights + moments, best)


def _no_row_fits(run: Run, shortage: Shortage, row_tokens: int) -> StageError:
    what = f"a single row of {row_tokens} tokens, with gradient checkpointing of every layer,"
    return devices.out_of_memory(run.device, shortage, what, run.advice(row_tokens))


def _compact_optimizer(run: Run) -> tuple[type[StochasticAdamW8bit], dict[str, Any]]:
    return StochasticAdamW8bit, {"lr": float(run.training.learning_rate)}


def train_in_full_precision(model: Any) -> None:  # noqa: ANN401
    """Convert trained parameters to FP32: at common learning rates, an update of AdamW is too small for BF16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

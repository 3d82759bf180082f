"""The training run: TRL's SFTTrainer on the prepared tensors, from a checkpoint on, to its end or a signal."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
from tunemill_api.finetune import Scheduler, Training

from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.order import row_order
from tunemill_trainer.learn.plan import Plan

_SCHEDULERS = {Scheduler.COSINE: "cosine", Scheduler.LINEAR: "linear", Scheduler.CONSTANT: "constant_with_warmup"}


@dataclass(frozen=True)
class Run:
    """What a run is made of, besides model and data.

    Attributes:
        training: the wish.
        plan: its figures.
        device: what it computes on.
        dtype: the number format of the base model's weights.
        folder: gets the checkpoints.
    """

    training: Training
    plan: Plan
    device: Device
    dtype: torch.dtype
    folder: Path


@dataclass(frozen=True)
class Result:
    """A run that ended.

    Attributes:
        model: the PeftModel.
        steps: optimizer steps, those of earlier attempts included; fewer than planned when it was asked to stop.
        history: one entry a log, of all attempts: step, epoch, loss, learning_rate, grad_norm and more.
    """

    model: Any
    steps: int
    history: list[dict[str, Any]]


def read_rows(path: Path) -> datasets.Dataset:
    """Return the training rows with a column `length`; they stay on the disk."""
    rows = datasets.Dataset.from_parquet(str(path), keep_in_memory=False)
    return rows.add_column("length", pc.list_value_length(rows.data.column("input_ids")).to_pylist())


def train(
    run: Run,
    model: Any,  # noqa: ANN401 - transformers ships no types
    adapter: LoraConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: datasets.Dataset,
    callbacks: list[TrainerCallback],
    checkpoint: Path | None,
) -> Result:
    """Train the adapter.

    Args:
        run: the settings.
        model: the base model, its vocabulary extended.
        adapter: what is trained.
        tokenizer: for the padding token.
        rows: input_ids, labels, length.
        callbacks: what happens around the steps.
        checkpoint: where to go on; None begins.

    Returns:
        The model. After a resumed run every logged figure equals that of a run that was never disturbed; on the CPU to
        the last bit.
    """
    lengths = rows["length"][:]
    training, plan = run.training, run.plan
    seen = plan.steps * training.batch_size if training.max_steps else training.epochs * len(rows)
    # One long pass in an order of our own: Transformers' length-grouped sampler draws from the generator that dropout
    # uses, too, and a run that is resumed in its second epoch would see other rows.
    ordered = rows.remove_columns("length").select(row_order(lengths, training.batch_size, training.seed, seen))
    set_seed(training.seed)
    trainer = SFTTrainer(
        model=model,
        args=_config(run),
        train_dataset=ordered,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=callbacks,
    )
    _work_around(trainer)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in history:
        entry["epoch"] = round(entry["step"] * training.batch_size / len(rows), 4)
    return Result(trainer.model, trainer.state.global_step, history)


def _config(run: Run) -> SFTConfig:
    training, plan = run.training, run.plan
    config = SFTConfig(
        output_dir=str(run.folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=float(training.learning_rate),
        lr_scheduler_type=_SCHEDULERS[training.scheduler],
        warmup_steps=float(training.warmup_ratio),  # below 1 it is a share
        seed=training.seed,
        train_sampling_strategy="sequential",
        bf16=run.dtype is torch.bfloat16,
        fp16=run.dtype is torch.float16,
        use_cpu=run.device.kind == "cpu",
        dataloader_pin_memory=run.device.kind == "cuda",
        # Memory before speed: about a fifth slower, and a 2B model fits a small GPU.
        gradient_checkpointing=run.device.kind == "cuda",
        # The rows are what prepare made of them: tokenised, masked, none too long.
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=plan.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=training.checkpoint.every_steps,
        # One more than the upload needs, so that none is removed while it is read.
        save_total_limit=training.checkpoint.keep + 1,
        report_to="none",
        disable_tqdm=True,
    )
    # More GPUs than asked for may be visible outside of a cluster; Transformers would use them all with DataParallel.
    config._n_gpu = min(1, config.n_gpu)  # noqa: SLF001
    return config


def _work_around(trainer: SFTTrainer) -> None:
    """Mend what TRL 1.16, PEFT 0.21 and Transformers 5.23 do to an adapter with trained token rows."""
    trainer.remove_callback(PrinterCallback)
    # TRL's fused head reads `.bias`, which PEFT's TrainableTokensWrapper does not have (peft#3649).
    head = trainer.model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.register_parameter("bias", None)
    # A resized vocabulary would put two whole embedding matrices into every checkpoint.
    trainer.model.save_pretrained = functools.partial(trainer.model.save_pretrained, save_embedding_layers=False)
    # Nor is the tokenizer needed in each: it is prepare's.
    trainer.processing_class = None
    # AdamW moves a bfloat16 weight by nothing at usual learning rates.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

"""Train: trains an adapter or all weights of the base model on the prepared rows, and commits the result.

With spec.training.preference, a second phase follows in the same process; see `preference`.
"""

import logging
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoTokenizer, TrainerCallback
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_api.training import AdapterMethod

from tunemill_trainer.bases.learning_rates import learning_rate
from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.learn import checkpoints, curve, devices, models, sft
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.learn.callbacks import (
    CheckpointsByTime,
    CheckpointUploads,
    DivergenceGuard,
    ProgressReports,
    StopAtStep,
    TrackerLogs,
)
from tunemill_trainer.learn.checkpoints import Checkpoint
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.full import WIDE, WeightFormat, count_weights, format_of_checkpoint, weight_format
from tunemill_trainer.learn.held_out import rows_of
from tunemill_trainer.learn.language_part import freeze_other_parts
from tunemill_trainer.learn.memory_settings import MemorySettings
from tunemill_trainer.learn.out_of_memory import release
from tunemill_trainer.learn.passes import Row
from tunemill_trainer.learn.plan import Plan, plan
from tunemill_trainer.learn.trainer import TRAINABLE_FILE
from tunemill_trainer.prepared import Prepared, Tokens
from tunemill_trainer.process.ranks import PeerLost, Ranks
from tunemill_trainer.release import provenance
from tunemill_trainer.stages import combinations, preference
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.preference import Begun, Setting
from tunemill_trainer.stages.stage_inputs import committed_by_first, fetch_prepared
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.tracking.chosen import trackers_of
from tunemill_trainer.tracking.trackers import Trackers

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Inputs:
    """What a training run starts from.

    Attributes:
        context: of the stage.
        device: where it trains.
        dtype: the number format of the computation.
        prepared: the output of prepare.
        tokens: the changes of the vocabulary.
        base_folder: the folder of the base model.
        rows: the training rows.
        figures: number of steps and size of a forward pass.
        checkpoint: the newest checkpoint of an earlier attempt; None to start from the beginning.
        weights: the format of the trained weights with the method Full.
        start: the weights of the adapter from which training starts; None starts with new ones.
    """

    context: StageContext
    device: Device
    dtype: torch.dtype
    prepared: Prepared
    tokens: Tokens
    base_folder: Path
    rows: datasets.Dataset
    figures: Plan
    checkpoint: Checkpoint | None
    weights: WeightFormat
    start: Path | None

    @property
    def output(self) -> Path:
        """The folder of the output."""
        return self.context.folder("trained")


@dataclass(frozen=True)
class _Trained:
    """A training run, complete or not.

    Attributes:
        result: the model and its log.
        learning_rate: the peak learning rate.
        seconds: the time that all attempts together spent training.
    """

    result: sft.Result
    learning_rate: str
    seconds: float


def run(context: StageContext) -> TrainedFacts:
    """Train the adapter or the full model from the newest checkpoint of an earlier attempt, and commit it.

    With several ranks, only rank 0 commits, and the others return when it has.

    Raises:
        StageError: CudaUnavailable, before anything is downloaded; CudaOutOfMemory; TrainingDiverged; Interrupted,
            after the last checkpoint was uploaded; PeerLost; and what workspace and Hub raise.
    """
    inputs = _load(context)
    if context.spec.training.preference is None:
        trained = _supervised(inputs)
        return committed_by_first(
            context, Stage.TRAIN, context.train_key, TrainedFacts, lambda: _commit(inputs, _save(inputs, trained))
        )
    begun = _begun(inputs)
    facts = preference.finish(_setting(inputs), begun, inputs.output)
    return committed_by_first(context, Stage.TRAIN, context.train_key, TrainedFacts, lambda: _commit(inputs, facts))


def _begun(inputs: _Inputs) -> Begun:
    """Return the state after the supervised phase and the model's answers, from a checkpoint or by training."""
    if inputs.checkpoint is not None and preference.is_begun(inputs.checkpoint):
        return preference.resume(inputs.checkpoint, inputs.output)
    facts = _save(inputs, _supervised(inputs))
    release()
    return preference.begin(_setting(inputs), facts, inputs.rows, inputs.output)


def _setting(inputs: _Inputs) -> Setting:
    return Setting(inputs.context, inputs.device, inputs.dtype, inputs.prepared, inputs.base_folder)


def _supervised(inputs: _Inputs) -> _Trained:
    """Train on the rows to the end.

    Raises:
        StageError: as `run`.
    """
    try:
        trained = _train(inputs)
    except StageError as error:
        if error.reason is Reason.TRAINING_DIVERGED:
            # The next run must not resume from a diverged model.
            inputs.context.workspace.prune_checkpoints(inputs.context.train_key, keep=0)
        raise
    if not trained.result.finished:
        raise Interrupted(
            f"stopped after step {trained.result.steps} of {inputs.figures.steps}; the next attempt resumes from there"
        )
    return trained


def _load(context: StageContext) -> _Inputs:
    """Choose the device, download what the run starts from, once per node, and meet the other ranks."""
    spec, ranks = context.spec, context.ranks
    device = devices.choose(spec.compute.gpus, ranks.place.local_index)
    devices.dtype(spec.training.precision, device)  # fails before anything is downloaded
    ranks.connect(f"{Stage.TRAIN}/{context.train_key}")
    downloaded = ranks.once_per_node("inputs", lambda: _download(context))
    prepared = Prepared(context.folder("prepared"))
    base_folder = Path(str(downloaded["base"]))
    rows = sft.read_rows(prepared.train_path)
    context.stop.check()
    dtype = devices.dtype(spec.training.precision, device, models.model_type(base_folder))
    step = downloaded["step"]
    checkpoint = None if step is None else checkpoints.on_disk(context.folder("checkpoints"), int(step))
    ranks.meet(device.kind)
    _refuse_different_checkpoints(ranks, None if checkpoint is None else checkpoint.step)
    return _Inputs(
        context=context,
        device=device,
        dtype=dtype,
        prepared=prepared,
        tokens=prepared.tokens(),
        base_folder=base_folder,
        rows=rows,
        figures=plan(spec.training, len(rows), context.run.memory_kills),
        checkpoint=checkpoint,
        weights=ranks.decided_by_first(partial(_weight_format, spec, base_folder, device, dtype, checkpoint)),
        start=Path(str(downloaded["start"])) if downloaded["start"] else None,
    )


def _download(context: StageContext) -> dict[str, Any]:
    """Download the output of prepare, the base model, the adapter to start from and the newest checkpoint.

    Returns:
        The folder of the base model, the file of the adapter's weights or None, and the step of the checkpoint or None.
    """
    spec = context.spec
    prepared = fetch_prepared(context)
    # Prepare has checked these already, unless its output is from a run with another method.
    combinations.refuse_impossible(spec)
    combinations.refuse_untrainable_tokens(spec, prepared.tokens())
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    base_folder = models.fetch_base(hub, prepared.base_model(), context.model_cache)
    start = models.fetch_adapter(hub, prepared.adapter(), context.model_cache)
    sft.read_rows(prepared.train_path)  # leaves the rows where the other ranks of the node map them into memory
    context.stop.check()
    checkpoint = checkpoints.newest(context.workspace, context.train_key, context.folder("checkpoints"))
    return {"base": str(base_folder), "start": start and str(start), "step": checkpoint and checkpoint.step}


def _refuse_different_checkpoints(ranks: Ranks, step: int | None) -> None:
    """End this attempt if a checkpoint was uploaded while the nodes looked for the newest one.

    Raises:
        PeerLost: the nodes found different ones. They find the same one in the next attempt.
    """
    found = set(ranks.gather(step))
    if len(found) > 1:
        raise PeerLost(f"the nodes found checkpoints of different steps: {', '.join(sorted(map(str, found)))}")


def _weight_format(
    spec: FineTuneSpec, base_folder: Path, device: Device, dtype: torch.dtype, checkpoint: Checkpoint | None
) -> WeightFormat:
    """Return the format of the trained weights: for the method Full that of the checkpoint, or the widest that fits."""
    if spec.adapter.method is not AdapterMethod.FULL:
        return WIDE
    if checkpoint is not None:
        return format_of_checkpoint(checkpoint.folder / TRAINABLE_FILE)
    return weight_format(count_weights(base_folder), device, dtype, devices.memory_remedy(spec))


def _train(inputs: _Inputs) -> _Trained:
    context, spec, checkpoint = inputs.context, inputs.context.spec, inputs.checkpoint
    full = spec.adapter.method is AdapterMethod.FULL
    with devices.device_errors(inputs.device, "training", devices.memory_remedy(spec)):
        base_dtype = inputs.weights.dtype if full else inputs.dtype
        model = models.load_base(inputs.base_folder, inputs.device, base_dtype, spec.base_model.quantization)
        weights = model.num_parameters()
        rate = learning_rate(spec.training, spec.adapter.method, weights)
        _log.info("peak learning rate %s, method %s, %s weights", rate, spec.adapter.method.value, f"{weights:,}")
        models.extend_vocabulary(model, inputs.tokens)
        if full:
            freeze_other_parts(model)
        with (
            checkpoints.Uploads(context.workspace, context.train_key, spec.training.checkpoint.keep) as uploads,
            trackers_of(context) as trackers,
        ):
            uploading = CheckpointUploads(uploads, checkpoint.train_seconds if checkpoint else 0.0)
            result = sft.train(
                sft.Run(
                    training=spec.training.model_copy(update={"learning_rate": rate}),
                    plan=inputs.figures,
                    device=inputs.device,
                    dtype=inputs.dtype,
                    folder=context.folder("checkpoints"),
                    weights=inputs.weights,
                    advice=partial(devices.memory_remedy, spec),
                    ranks=context.ranks,
                    start=inputs.start,
                ),
                model,
                adapter=adapter_config(spec.adapter, model, inputs.tokens, inputs.figures.steps),
                tokenizer=AutoTokenizer.from_pretrained(inputs.prepared.tokenizer_path),
                rows=inputs.rows,
                callbacks=_callbacks(inputs, uploading, trackers),
                checkpoint=checkpoint.folder if checkpoint else None,
                held_out=rows_that_choose(inputs.prepared, spec.training.max_length),
            )
            return _Trained(result, rate, uploading.train_seconds)


def rows_that_choose(prepared: Prepared, max_length: int) -> list[Row]:
    """Return the rows whose loss is measured after each epoch: validation rows, or held-out rows if there are none."""
    return rows_of(prepared.validation_cases(), max_length) or rows_of(prepared.cases(), max_length)


def _callbacks(inputs: _Inputs, uploading: CheckpointUploads, trackers: Trackers) -> list[TrainerCallback]:
    context, spec = inputs.context, inputs.context.spec
    stop = StopAtStep(context.ranks.stop)
    if not context.ranks.first:
        return [stop]
    fp16_remedy = devices.fp16_remedy(inputs.dtype, spec.base_model.quantization)
    return [
        ProgressReports(context.progress, len(inputs.rows) / spec.training.batch_size),
        DivergenceGuard(inputs.tokens.vocabulary, spec.training.divergence, fp16_remedy),
        stop,
        CheckpointsByTime(spec.training.checkpoint.every_minutes),
        uploading,
        TrackerLogs(trackers),
    ]


def _save(inputs: _Inputs, trained: _Trained) -> TrainedFacts:
    """Write the model and the training log into the folder of the output, and return the facts."""
    result, output = trained.result, inputs.output
    base_dtype = models.stored_dtype(inputs.base_folder)
    prepared = inputs.prepared
    save_trained(result.model, prepared.base_model(), prepared.tokenizer_path, output / "adapter", base_dtype)
    curve.write_record(result.history, result.held_out, output)
    provenance.record_image(output)
    return TrainedFacts(
        steps=result.steps,
        learning_rate=trained.learning_rate,
        loss=f"{curve.mean_of_last_tenth(result.history):.4f}",
        first_loss=f"{result.history[0]['loss']:.4f}",
        held_out_loss=f"{result.best.loss:.4f}" if result.best else "",
        best_step=result.best.step if result.best else 0,
        train_seconds=math.ceil(trained.seconds),
        resumed_from_step=inputs.checkpoint.step if inputs.checkpoint else 0,
        device=inputs.device.name,
        memory=_memory_facts(inputs.device, result.memory_settings, inputs.weights),
        adapter=f"{inputs.context.workspace.uri(Stage.TRAIN, inputs.context.train_key)}/adapter",
    )


def _commit(inputs: _Inputs, facts: TrainedFacts) -> TrainedFacts:
    """Commit the output to the workspace."""
    workspace, key, output = inputs.context.workspace, inputs.context.train_key, inputs.output
    return TrainedFacts.model_validate(workspace.commit(Stage.TRAIN, key, output, facts).facts)


def _memory_facts(device: Device, settings: MemorySettings, weights: WeightFormat) -> str:
    """Return the peak of the GPU memory and the memory settings, for status."""
    peak = f"{torch.cuda.max_memory_allocated() >> 20} of {device.memory >> 20} MiB, " if device.kind == "cuda" else ""
    return f"{peak}{settings}{', 8-bit optimizer' if weights.compact else ''}"

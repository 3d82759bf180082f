"""Train: the prepared tensors and the base model in, what was trained and the record of its training out."""

import math
from functools import partial
from pathlib import Path

import datasets
import torch
from transformers import AutoConfig, AutoTokenizer
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_api.training import AdapterMethod

from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.learn import checkpoints, curve, devices, models, sft
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.learn.callbacks import (
    CheckpointsByTime,
    CheckpointUploads,
    DivergenceGuard,
    ProgressReports,
    StopAtStep,
)
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.full import WIDE, WeightFormat, count_weights, format_of_checkpoint, weight_format
from tunemill_trainer.learn.held_out import rows_of
from tunemill_trainer.learn.memory_ladder import Rung
from tunemill_trainer.learn.plan import plan
from tunemill_trainer.learn.trainer import TRAINABLE_FILE
from tunemill_trainer.prepared import Prepared
from tunemill_trainer.release import provenance
from tunemill_trainer.stages import combinations
from tunemill_trainer.stages.context import StageContext
from tunemill_trainer.stages.stage_inputs import fetch_prepared
from tunemill_trainer.storage.hub import Hub


def run(context: StageContext) -> TrainedFacts:
    """Train the adapter or the whole model, going on from the newest checkpoint of an earlier attempt, and commit it.

    Raises:
        StageError: CudaUnavailable before anything is downloaded; CudaOutOfMemory; TrainingDiverged; Interrupted, after
            a checkpoint went to the workspace; and what workspace and Hub raise.
    """
    spec = context.spec
    device = devices.choose(spec.compute.gpus)
    devices.dtype(spec.training.precision, device)
    prepared = fetch_prepared(context)
    # Prepare has said so already, unless it ran for another method.
    combinations.refuse_impossible(spec)
    combinations.refuse_untrainable_tokens(spec, prepared.tokens())
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    base_folder = models.fetch_base(hub, prepared.base_model(), context.model_cache)
    rows = sft.read_rows(prepared.train_path)
    context.stop.check()
    try:
        return _train(context, prepared, base_folder, rows, device)
    except StageError as error:
        if error.reason is Reason.TRAINING_DIVERGED:
            # Nobody wants to go on from there.
            context.workspace.prune_checkpoints(context.train_key, keep=0)
        raise


def _train(
    context: StageContext, prepared: Prepared, base_folder: Path, rows: datasets.Dataset, device: Device
) -> TrainedFacts:
    spec, workspace, key = context.spec, context.workspace, context.train_key
    tokens, figures = prepared.tokens(), plan(spec.training, len(rows), context.run.memory_kills)
    dtype = devices.dtype(spec.training.precision, device, models.model_type(base_folder))
    checkpoint = checkpoints.newest(workspace, key, context.folder("checkpoints"))
    weights = WIDE
    if spec.adapter.method is AdapterMethod.FULL and checkpoint is not None:
        weights = format_of_checkpoint(checkpoint.folder / TRAINABLE_FILE)
    elif spec.adapter.method is AdapterMethod.FULL:
        weights = weight_format(count_weights(base_folder), device, dtype, devices.smaller(spec))
    base_dtype = weights.dtype if spec.adapter.method is AdapterMethod.FULL else dtype
    with devices.device_errors(device, "training", devices.smaller(spec)):
        model = models.load_base(base_folder, device, base_dtype, spec.base_model.quantization)
        models.extend_vocabulary(model, tokens)
        with checkpoints.Uploads(workspace, key, spec.training.checkpoint.keep) as uploads:
            clock = CheckpointUploads(uploads, checkpoint.train_seconds if checkpoint else 0.0)
            result = sft.train(
                sft.Run(
                    spec.training,
                    figures,
                    device,
                    dtype,
                    context.folder("checkpoints"),
                    weights,
                    partial(devices.smaller, spec),
                ),
                model,
                adapter_config(spec.adapter, model, tokens, figures.steps),
                AutoTokenizer.from_pretrained(prepared.tokenizer_path),
                rows,
                [
                    ProgressReports(context.progress, len(rows) / spec.training.batch_size),
                    DivergenceGuard(
                        tokens.vocabulary,
                        spec.training.divergence,
                        devices.fp16_in_use(dtype, spec.base_model.quantization),
                    ),
                    StopAtStep(context.stop),
                    CheckpointsByTime(spec.training.checkpoint.every_minutes),
                    clock,
                ],
                checkpoint.folder if checkpoint else None,
                rows_of(prepared.cases(), spec.training.max_length),
            )
            train_seconds = clock.train_seconds
    if not result.finished:
        raise Interrupted(f"stopped after step {result.steps} of {figures.steps}; the next attempt goes on from there")
    output = context.folder("trained")
    own_dtype = AutoConfig.from_pretrained(base_folder).dtype or torch.float32
    save_trained(result.model, prepared.base_model(), prepared.tokenizer_path, output / "adapter", own_dtype)
    curve.write_record(result.history, result.held_out, output)
    provenance.record_image(output)
    facts = TrainedFacts(
        steps=result.steps,
        loss=f"{curve.mean_of_last_tenth(result.history):.4f}",
        first_loss=f"{result.history[0]['loss']:.4f}",
        held_out_loss=f"{result.best.loss:.4f}" if result.best else "",
        best_step=result.best.step if result.best else 0,
        train_seconds=math.ceil(train_seconds),
        resumed_from_step=checkpoint.step if checkpoint else 0,
        device=device.name,
        memory=_memory_facts(device, result.rung, weights),
        adapter=f"{workspace.uri(Stage.TRAIN, key)}/adapter",
    )
    return TrainedFacts.model_validate(workspace.commit(Stage.TRAIN, key, output, facts).facts)


def _memory_facts(device: Device, rung: Rung, weights: WeightFormat) -> str:
    peak = f"{torch.cuda.max_memory_allocated() >> 20} of {device.memory >> 20} MiB, " if device.kind == "cuda" else ""
    return f"{peak}{rung}{', 8-bit optimizer' if weights.compact else ''}"

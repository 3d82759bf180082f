"""Train: the prepared tensors and the base model in, an adapter and the record of its training out."""

import gc
import logging
import math
from pathlib import Path

import datasets
import torch
from transformers import AutoTokenizer
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts

from tunemill_trainer.context import StageContext
from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.hub import Hub
from tunemill_trainer.learn import checkpoints, curve, devices, models, sft
from tunemill_trainer.learn.adapter import lora_config, save_adapter
from tunemill_trainer.learn.callbacks import CheckpointUploads, DivergenceGuard, ProgressReports, StopAtStep
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.plan import Plan, plan
from tunemill_trainer.prepared import Prepared

_log = logging.getLogger(__name__)


def run(context: StageContext) -> TrainedFacts:
    """Train the adapter, going on from the newest checkpoint of an earlier attempt, and commit it.

    Raises:
        StageError: CudaUnavailable before anything is downloaded; CudaOutOfMemory; TrainingDiverged; Interrupted, after
            a checkpoint went to the workspace; and what workspace and Hub raise.
    """
    spec = context.spec
    device = devices.choose(spec.compute.gpus)
    devices.dtype(spec.training.precision, device)
    prepared = Prepared(context.folder("prepared"))
    context.workspace.fetch(Stage.PREPARE, context.prepared.key, context.folder("prepared"))
    hub = Hub(spec.hub.endpoint, context.credentials.hub_token("hub-read"))
    base_folder = models.fetch_base(hub, prepared.base_model())
    rows = sft.read_rows(prepared.train_path)
    figures = plan(spec.training, len(rows), max(rows["length"]))
    while True:
        context.stop.check()
        try:
            return _attempt(context, prepared, base_folder, rows, device, figures)
        except StageError as error:
            if error.reason is Reason.TRAINING_DIVERGED:
                # Nobody wants to go on from there.
                context.workspace.prune_checkpoints(context.train_key, keep=0)
            if error.reason is not Reason.CUDA_OUT_OF_MEMORY or figures.micro_batch == 1:
                raise
            figures = figures.halved()
            _log.warning("%s; going on with %d rows per forward pass", error.message, figures.micro_batch)
        # Outside of the except block, which keeps the model of the failed attempt alive.
        gc.collect()
        torch.cuda.empty_cache()


def _attempt(
    context: StageContext, prepared: Prepared, base_folder: Path, rows: datasets.Dataset, device: Device, figures: Plan
) -> TrainedFacts:
    spec, workspace, key = context.spec, context.workspace, context.train_key
    tokens = prepared.tokens()
    dtype = devices.dtype(spec.training.precision, device)
    checkpoint = checkpoints.newest(workspace, key, context.folder("checkpoints"))
    with devices.device_errors(device):
        model = models.load_base(base_folder, device, dtype)
        models.extend_vocabulary(model, tokens)
        with checkpoints.Uploads(workspace, key, spec.training.checkpoint.keep) as uploads:
            clock = CheckpointUploads(uploads, checkpoint.train_seconds if checkpoint else 0.0)
            result = sft.train(
                sft.Run(spec.training, figures, device, dtype, context.folder("checkpoints")),
                model,
                lora_config(spec.adapter.lora, model, tokens),
                AutoTokenizer.from_pretrained(prepared.tokenizer_path),
                rows,
                [
                    ProgressReports(context.progress, len(rows) / spec.training.batch_size),
                    DivergenceGuard(tokens.vocabulary),
                    StopAtStep(context.stop),
                    clock,
                ],
                checkpoint.folder if checkpoint else None,
            )
            train_seconds = clock.train_seconds
    if result.steps < figures.steps:
        raise Interrupted(f"stopped after step {result.steps} of {figures.steps}; the next attempt goes on from there")
    output = context.folder("trained")
    save_adapter(result.model, prepared.base_model(), prepared.tokenizer_path, output / "adapter")
    curve.write_record(result.history, f"{context.run.name}: training loss", output)
    facts = TrainedFacts(
        steps=result.steps,
        loss=f"{curve.mean_of_last_tenth(result.history):.4f}",
        first_loss=f"{result.history[0]['loss']:.4f}",
        train_seconds=math.ceil(train_seconds),
        resumed_from_step=checkpoint.step if checkpoint else 0,
        device=device.name,
        adapter=f"{workspace.uri(Stage.TRAIN, key)}/adapter",
    )
    return TrainedFacts.model_validate(workspace.commit(Stage.TRAIN, key, output, facts).facts)

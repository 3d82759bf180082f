"""`tunemill plan`: estimates the GPU memory of a run from its manifest, without data, weights or a GPU.

tunemill plan finetune.yaml
tunemill plan finetune.yaml --longest 1200 --config ./gemma-2-2b-it
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.failures import ExitCode

from tunemill_trainer.commands import output
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.option_types import positive_integer
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console

if TYPE_CHECKING:
    from tunemill_api.finetune import FineTuneSpec

    from tunemill_trainer.learn.memory_plan import Estimate, Lengths, Need


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument("manifest", metavar="FILE", type=Path, help="a YAML file with a FunctionCallFineTune")
    command.add_argument(
        "--config",
        metavar="FOLDER",
        type=Path,
        help="folder with the base model's config.json (default: that of spec.baseModel on the Hub; HF_TOKEN is used)",
    )
    command.add_argument(
        "--longest",
        metavar="TOKENS",
        type=positive_integer,
        help="tokens of the longest row (default: spec.training.maxLength, which is also the maximum)",
    )
    output.add_json_option(command)


def main(options: argparse.Namespace) -> int:
    """Print the estimate and return the exit code: 0; 78 when the run cannot fit spec.compute.gpuMemory."""
    # Imported here: other commands and the stages share this parser and do not need them.
    from tunemill_trainer.bases.learning_rates import learning_rate
    from tunemill_trainer.commands import manifest
    from tunemill_trainer.learn import memory_plan
    from tunemill_trainer.prepared import BaseModel
    from tunemill_trainer.stages import start_adapter
    from tunemill_trainer.storage.hub import Hub

    try:
        spec = manifest.load(options.manifest).run.spec
        hub, commit, folder = Hub(spec.hub.endpoint, os.environ.get("HF_TOKEN")), "", options.config
        if folder is None:
            reader = hub.model(spec.base_model.id)
            commit = reader.resolve(spec.base_model.revision).commit
            folder = reader.download(commit, ["config.json"])
        added = len(spec.tokenizer.add_tokens)
        if (found := start_adapter.resolve(spec, hub)) is not None:
            base = BaseModel(spec.base_model.id, commit)
            spec, added = start_adapter.planned(spec, hub, found, base, folder)
        lengths = memory_plan.lengths_of(spec, longest=min(options.longest or 0, spec.training.max_length))
        estimate = memory_plan.estimate_in_child(folder, spec, added, lengths)
        rate = learning_rate(spec.training, spec.adapter.method, estimate.weights)
        if options.json:
            output.show_json(_json_of(spec, lengths, estimate, rate))
        else:
            console.show(
                f"{spec.base_model.id}, {estimate.weights:,} weights, {spec.adapter.method}, "
                f"quantization {spec.base_model.quantization}, peak learning rate {rate}\n"
                f"rows of at most {lengths.longest} tokens, {lengths.pass_tokens} tokens a forward pass\n\n"
                f"{memory_plan.table(estimate)}"
            )
        memory_plan.refuse_too_large(spec, estimate)
    except StageError as error:
        return output.fail_for("plan", error)
    except memory_plan.UnknownMemoryError as error:
        message = f"the memory of this run cannot be estimated: {error}. Correct spec.baseModel or --config."
        return output.fail("plan", message, ExitCode.SPEC_WRONG)
    return ExitCode.DONE


def _json_of(spec: "FineTuneSpec", lengths: "Lengths", estimate: "Estimate", rate: str) -> dict[str, object]:
    from tunemill_trainer.learn.memory_plan import GPUS

    gpus = []
    for name, mib in sorted(GPUS.items(), key=lambda gpu: gpu[1]):
        need = estimate.fastest(mib)
        gpus.append({"name": name, "mib": mib, "fits": None if need is None else need.mode.value})
    return {
        "baseModel": spec.base_model.id,
        "method": spec.adapter.method.value,
        "quantization": spec.base_model.quantization.value,
        "weights": estimate.weights,
        "learningRate": rate,
        "longestRowTokens": lengths.longest,
        "passTokens": lengths.pass_tokens,
        "leastMib": estimate.least_mib,
        "fullSpeedMib": estimate.full_speed_mib,
        "train": [_need_as_json(need) for need in estimate.train],
        "evaluate": [_need_as_json(need) for need in estimate.evaluate],
        "gpus": gpus,
    }


def _need_as_json(need: "Need") -> dict[str, object]:
    return {"mode": need.mode.value, "compact": need.compact, "mib": need.mib, "parts": dict(need.parts)}


COMMAND = Command(
    name="plan",
    task=Task.TRAIN,
    summary="estimate the GPU memory of a run, list the GPUs that it fits, and show the learning rate",
    add_options=add_options,
    main=main,
    examples=("plan finetune.yaml", "plan finetune.yaml --longest 1200 --config ./gemma-2-2b-it --json"),
    exit_codes={
        ExitCode.SPEC_WRONG: "the manifest is wrong, or the memory of this model cannot be estimated",
        ExitCode.INPUT_MISSING: "the base model or the adapter does not exist",
        ExitCode.SERVICE_UNAVAILABLE: "the Hub cannot be reached",
        ExitCode.PERMISSION_DENIED: "the Hub refuses the token",
        ExitCode.CONFIGURATION: "the run does not fit spec.compute.gpuMemory, or the training libraries are missing",
    },
    json=JsonOutput(
        "one object",
        (
            JsonField("baseModel", "string", "`spec.baseModel.id`."),
            JsonField("method", "string", "`spec.adapter.method`, or the method of `spec.baseModel.adapter`."),
            JsonField("quantization", "string", "`spec.baseModel.quantization`."),
            JsonField("weights", "integer", "Number of weights of the base model."),
            JsonField("learningRate", "string", "The peak learning rate that train uses."),
            JsonField("longestRowTokens", "integer", "Tokens of the longest row."),
            JsonField("passTokens", "integer", "The maximum number of tokens of a forward pass."),
            JsonField("leastMib", "integer", "MiB without which the run does not fit."),
            JsonField("fullSpeedMib", "integer", "MiB with which nothing is computed twice to save memory."),
            JsonField("train[].mode", "string", "How much the stage recomputes to save memory; the fastest first."),
            JsonField("train[].compact", "boolean", "Whether it uses BF16 weights and an 8-bit optimizer."),
            JsonField("train[].mib", "integer", "The memory that it needs, in MiB."),
            JsonField("train[].parts.*", "integer", "The parts of it, in bytes."),
            JsonField("evaluate[]", "object", "The same fields for the evaluate stage."),
            JsonField("gpus[].name", "string", "A common GPU."),
            JsonField("gpus[].mib", "integer", "Its memory in MiB."),
            JsonField("gpus[].fits", "string or null", "The fastest mode that fits; null when none does."),
        ),
    ),
    needs_training=True,
)

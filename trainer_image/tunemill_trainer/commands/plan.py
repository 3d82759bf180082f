"""`tunemill-trainer plan`: estimates the GPU memory of a run from its manifest, without data, weights or a GPU.

tunemill-trainer plan finetune.yaml
tunemill-trainer plan finetune.yaml --longest 1200 --config ./gemma-2-2b-it
"""

import argparse
import os
import sys
from pathlib import Path

from tunemill_api.failures import ExitCode

from tunemill_trainer.errors import StageError


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument("manifest", metavar="FILE", type=Path, help="a YAML file with a FunctionCallFineTune")
    command.add_argument(
        "--config",
        metavar="FOLDER",
        type=Path,
        help="with the base model's config.json (default: that of spec.baseModel on the Hub; HF_TOKEN is used)",
    )
    command.add_argument(
        "--longest", metavar="TOKENS", type=int, default=0, help="of the longest row (default: spec.training.maxLength)"
    )


def main(options: argparse.Namespace) -> int:
    """Print the table and return the exit code: 0; 78 when the run cannot fit spec.compute.gpuMemory."""
    # Here, so that the stages, which share the parser of the options, do not wait for them.
    from tunemill_trainer.commands import run as one_machine
    from tunemill_trainer.learn import memory_plan

    try:
        spec = one_machine.load(options.manifest).spec
        folder = options.config or _download(spec.hub.endpoint, spec.base_model.id, spec.base_model.revision)
        lengths = memory_plan.lengths_of(spec, longest=min(max(options.longest, 0), spec.training.max_length))
        found = memory_plan.estimate_in_child(folder, spec, len(spec.tokenizer.add_tokens), lengths)
        print(f"{spec.base_model.id}, {spec.adapter.method}, quantization {spec.base_model.quantization}")
        print(f"rows of at most {lengths.longest} tokens, {lengths.pass_tokens} tokens a forward pass\n")
        print(memory_plan.table(found))
        memory_plan.refuse_too_large(spec, found)
    except StageError as error:
        print(f"tunemill-trainer plan: {error.message}. {error.failure.remedy}", file=sys.stderr)
        return error.exit_code
    except memory_plan.UnknownMemoryError as error:
        print(f"tunemill-trainer plan: the memory of this run cannot be estimated: {error}", file=sys.stderr)
        return ExitCode.SPEC_WRONG
    return ExitCode.DONE


def _download(endpoint: str, model: str, revision: str) -> Path:
    from tunemill_trainer.storage.hub import Hub

    hub = Hub(endpoint, os.environ.get("HF_TOKEN"))
    reader = hub.model(model)
    return reader.download(reader.resolve(revision).commit, ["config.json"])

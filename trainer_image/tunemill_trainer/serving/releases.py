"""Reads from the folder of a release what an engine loads, with the flags of its serving contract."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunemill_api.failures import ExitCode
from tunemill_api.local_files import local_path
from tunemill_api.publish import ServingTarget

from tunemill_trainer.judge.parse import ReplyFormat
from tunemill_trainer.release.contract import CONTRACT, Launch
from tunemill_trainer.release.local_releases import path_of
from tunemill_trainer.release.servability import max_lora_rank
from tunemill_trainer.serving.errors import ServingError

_ADAPTER = "adapter_config.json"


def launch_of(folder: Path, target: ServingTarget | None = None) -> Launch:
    """Return how an engine is started for a release in a folder.

    Args:
        folder: the files of a published repository.
        target: the engine; None means that of the serving contract.

    Raises:
        ServingError: the folder is no release, or the engine cannot load it.
    """
    contract = read_contract(folder)
    target = target or ServingTarget(contract["target"])
    name = served_repository(contract)[0].rsplit("/", 1)[-1] or folder.name
    if not is_adapter(folder):
        reasoning = _reasoning_parser(contract, target)
        return Launch(target, str(folder), "", name, _parser(contract, target), reasoning_parser=reasoning)
    if target is ServingTarget.TRANSFORMERS or not contract["adapterServable"]:
        served = contract["model"]
        remedy = (
            f"serve the merged model {served}"
            if contract["merged"] and served
            else "add Merged to spec.publish.artifacts, publish again, and serve the merged model"
        )
        why = contract["reason"] if target.value == contract["target"] else "it loads full models only"
        raise ServingError(f"{target.value} cannot load the adapter in {folder}: {why}; {remedy}", ExitCode.SPEC_WRONG)
    config = _json_of(folder / _ADAPTER)
    base = str(config["base_model_name_or_path"])
    return Launch(
        target,
        model=base,
        # A base model in a folder has no commit on the Hub.
        revision="" if Path(base).is_dir() else str(config.get("revision") or ""),
        name=name,
        parser=_parser(contract, target),
        adapter=str(folder),
        max_rank=max_lora_rank(config),
        reasoning_parser=_reasoning_parser(contract, target),
    )


def read_contract(folder: Path) -> Mapping[str, Any]:
    """Return the content of serving.json.

    Raises:
        ServingError: there is none, or it is not of this form.
    """
    if not (folder / CONTRACT).is_file():
        raise ServingError(
            f"{folder} has no {CONTRACT}: give the folder or the repository of a release that Tunemill published with "
            "spec.publish.serving vLLM or Transformers",
            ExitCode.INPUT_MISSING,
        )
    contract = _json_of(folder / CONTRACT)
    needed = {"target", "model", "merged", "adapterServable", "reason", "toolCallParser", "callFormat"}
    if missing := sorted(needed - contract.keys()):
        raise ServingError(
            f"{folder / CONTRACT} lacks {', '.join(missing)}: publish the release again", ExitCode.DATA_WRONG
        )
    return contract


def served_repository(contract: Mapping[str, Any]) -> tuple[str, str]:
    """Return the repository or file:// URI that the contract serves, and its revision."""
    served, _, revision = str(contract["model"]).rpartition("@")
    return served, revision


def served_folder(contract: Mapping[str, Any]) -> Path:
    """Return the folder of the local release that the contract serves."""
    served, revision = served_repository(contract)
    return path_of(local_path(served), revision)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter, and not a full model."""
    return (folder / _ADAPTER).is_file()


def _parser(contract: Mapping[str, Any], target: ServingTarget) -> str:
    """Return the tool-call parser of an engine, which may be another than the contract's."""
    return ReplyFormat(contract["callFormat"]).vllm_parser if target is ServingTarget.VLLM else ""


def _reasoning_parser(contract: Mapping[str, Any], target: ServingTarget) -> str:
    return str(contract.get("reasoningParser", "")) if target is ServingTarget.VLLM else ""


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ServingError(f"{path} cannot be read: {error}", ExitCode.DATA_WRONG) from error
    if not isinstance(found, dict):
        raise ServingError(f"{path} must be a JSON object, found {type(found).__name__}", ExitCode.DATA_WRONG)
    return found

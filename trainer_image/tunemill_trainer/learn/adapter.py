"""What is trained: the configuration of an adapter, or the whole model; saved so that it loads anywhere."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel
from torch import nn
from tunemill_api.failures import Reason
from tunemill_api.training import AdaLora, Adapter, AdapterMethod, Ia3, Lora

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel, Tokens

_ALL_LINEAR = "all-linear"
_WARM_SHARE, _FINAL_SHARE = 0.1, 0.3
"""The shares of the steps before AdaLoRA begins to take ranks away, and after it has ended; as in the paper's runs."""


def adapter_config(adapter: Adapter, model: Any, tokens: Tokens, steps: int) -> PeftConfig | None:  # noqa: ANN401 - transformers ships no types
    """Return PEFT's configuration of the adapter; None when the whole model is trained.

    The rows of added tokens are trained as a whole: with frozen rows the model never learns to write the tags. A head
    of its own has rows of its own. IA3 has no place for such rows, which `combinations` has refused.

    Args:
        adapter: the wish.
        model: the base model, its vocabulary extended.
        tokens: which were added.
        steps: optimizer steps of the run; AdaLoRA divides them into phases.

    Raises:
        StageError: InvalidSpec, when a target module is not there or cannot carry an adapter, or when there are too few
            steps for AdaLoRA.
    """
    if adapter.method is AdapterMethod.FULL:
        return None
    if adapter.method is AdapterMethod.IA3:
        return _ia3(adapter.ia3, model)
    layers = _vocabulary_layers(model) if tokens.added else []
    rows = {_name(model, layer): [token.id for token in tokens.added] for layer in layers} or None
    if adapter.method is AdapterMethod.ADALORA:
        return _adalora(adapter.adalora, model, rows, steps)
    return _lora(adapter.lora, model, rows)


def save_trained(model: Any, base: BaseModel, tokenizer: Path, folder: Path, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Write what was trained, with tokenizer and chat template.

    AutoPeftModelForCausalLM loads the folder of an adapter, AutoModelForCausalLM that of a whole model.

    Args:
        model: the trained PeftModel or model.
        base: what was trained; was loaded from a folder, and is named by its place on the Hub.
        tokenizer: the folder with the prepared tokenizer.
        folder: where the files go.
        dtype: the number format of a whole model; the base model's own, so that it is no larger than that.
    """
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base.place, base.revision
        # The rows of the new tokens are in the adapter; without this PEFT adds two whole embedding matrices.
        model.save_pretrained(folder, save_embedding_layers=False)
        # PEFT's model card; ours is written when the model is published.
        (folder / "README.md").unlink(missing_ok=True)
    else:
        model.to(dtype).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def _lora(lora: Lora, model: Any, rows: dict[str, list[int]] | None) -> LoraConfig:  # noqa: ANN401
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=float(lora.dropout),
        target_modules=_targets(lora.target_modules, model, "spec.adapter.lora.targetModules"),
        use_rslora=lora.rs_lora,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )


def _adalora(adalora: AdaLora, model: Any, rows: dict[str, list[int]] | None, steps: int) -> AdaLoraConfig:  # noqa: ANN401
    warm, final = int(_WARM_SHARE * steps), math.ceil(_FINAL_SHARE * steps)
    if warm >= steps - final:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.adapter.method AdaLoRA needs steps in which ranks can be taken away: expected at least 2 optimizer "
            f"steps, found {steps}; raise spec.training.epochs or spec.training.maxSteps",
        )
    return AdaLoraConfig(
        init_r=adalora.initial_rank,
        target_r=adalora.target_rank,
        lora_alpha=adalora.alpha,
        lora_dropout=float(adalora.dropout),
        target_modules=_targets(adalora.target_modules, model, "spec.adapter.adalora.targetModules"),
        tinit=warm,
        tfinal=final,
        total_step=steps,
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )


def _ia3(ia3: Ia3, model: Any) -> IA3Config:  # noqa: ANN401
    targets = _targets(ia3.target_modules, model, "spec.adapter.ia3.targetModules")
    if targets == _ALL_LINEAR:
        # PEFT would write whole paths into the configuration, and refuse it when it is loaded: the feed-forward modules
        # are names and no longer among them.
        head = model.get_output_embeddings()
        linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and part is not head]
        targets = sorted({name.rpartition(".")[2] for name in linear})
    stray = sorted(set(ia3.feedforward_modules) - set(targets))
    if stray:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.adapter.ia3.feedforwardModules names {', '.join(stray)}: expected some of "
            f"spec.adapter.ia3.targetModules, which are {', '.join(targets)}",
        )
    return IA3Config(target_modules=targets, feedforward_modules=ia3.feedforward_modules, task_type="CAUSAL_LM")


def _targets(wanted: list[str], model: Any, field: str) -> list[str] | str:  # noqa: ANN401
    if wanted == [_ALL_LINEAR]:
        return _ALL_LINEAR
    # The head, too, when its weights are the embedding's: the loss reads them and would pass an adapter by.
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    there = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Embedding)}
    offered = sorted(
        {name.rpartition(".")[2] for name, module in there.items() if all(module is not layer for layer in layers)}
    )
    for target in wanted:
        matching = [module for name, module in there.items() if name == target or name.endswith(f".{target}")]
        if not matching or any(module is layer for module in matching for layer in layers):
            raise StageError(
                Reason.INVALID_SPEC,
                f"{field} names {target!r}: expected [{_ALL_LINEAR}] alone, or some of {', '.join(offered)}. "
                "The rows of added tokens are trained without being named here",
            )
    return wanted


def _vocabulary_layers(model: Any) -> list[Any]:  # noqa: ANN401
    """Return the embedding, and the output head when it has weights of its own."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if head.weight is embedding.weight else [embedding, head]


def _name(model: Any, layer: Any) -> str:  # noqa: ANN401
    """Return the last part of a layer's name, as PEFT wants it."""
    return str(next(name for name, module in model.named_modules() if module is layer)).rpartition(".")[2]

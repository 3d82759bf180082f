"""The adapter: its configuration for a model, and how it is saved so that it loads anywhere."""

import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from tunemill_api.failures import Reason
from tunemill_api.finetune import Lora

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel, Tokens

_ALL_LINEAR = "all-linear"
_FIELD = "spec.adapter.lora.targetModules"


def lora_config(lora: Lora, model: Any, tokens: Tokens) -> LoraConfig:  # noqa: ANN401 - transformers ships no types
    """Return PEFT's configuration of the adapter.

    The rows of added tokens are trained as a whole: with frozen rows the model never learns to write the tags. A head
    of its own has rows of its own.

    Raises:
        StageError: InvalidSpec, when a target module is not there or cannot carry an adapter.
    """
    indices = {_name(model, layer): [token.id for token in tokens.added] for layer in _vocabulary_layers(model)}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=float(lora.dropout),
        target_modules=_targets(lora.target_modules, model),
        use_rslora=lora.rs_lora,
        trainable_token_indices=indices if tokens.added else None,
        task_type="CAUSAL_LM",
    )


def save_adapter(model: Any, base: BaseModel, tokenizer: Path, folder: Path) -> None:  # noqa: ANN401
    """Write adapter, tokenizer and chat template to a folder that AutoPeftModelForCausalLM loads.

    Args:
        model: the trained PeftModel.
        base: what the adapter is for; was loaded from a folder, and is named by its place on the Hub.
        tokenizer: the folder with the prepared tokenizer.
        folder: where the files go.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base.id, base.revision
    # The rows of the new tokens are in the adapter; without this PEFT adds two whole embedding matrices.
    model.save_pretrained(folder, save_embedding_layers=False)
    # PEFT's model card; ours is written when the model is published.
    (folder / "README.md").unlink(missing_ok=True)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def _targets(wanted: list[str], model: Any) -> list[str] | str:  # noqa: ANN401
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
                f"{_FIELD} names {target!r}: expected [{_ALL_LINEAR}] alone, or some of {', '.join(offered)}. "
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

"""The configuration of the adapter for PEFT, and saving of the trained adapter or full model."""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING
from safetensors.torch import load_file
from torch import nn
from tunemill_api.failures import Reason
from tunemill_api.training import AdaLora, Adapter, AdapterMethod, Ia3, Lora

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn.language_part import is_multimodal, prefix_of
from tunemill_trainer.prepared import BaseModel, Tokens

_ALL_LINEAR = "all-linear"
_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_MAMBA_LAYERS = frozenset({"out_proj", "conv1d"})
"""As PEFT has them in `_check_lora_target_modules_mamba`."""
_WARM_SHARE, _FINAL_SHARE = 0.1, 0.3
"""The fractions of the steps before AdaLoRA starts pruning ranks and after it has finished, as in the paper's runs."""


def adapter_config(adapter: Adapter, model: Any, tokens: Tokens, steps: int) -> PeftConfig | None:  # noqa: ANN401 - transformers ships no types
    """Return PEFT's configuration of the adapter; None for the method Full.

    The rows of added tokens are trained directly, in the embedding and in an untied output head: with frozen rows, the
    model does not learn to write the tags. IA3 does not support this; `combinations` refuses it.

    Args:
        adapter: spec.adapter.
        model: the base model, with extended vocabulary.
        tokens: the changes of the vocabulary.
        steps: optimizer steps of the run; AdaLoRA divides them into phases.

    Raises:
        StageError: InvalidSpec, when a target module does not exist or cannot have an adapter, or when there are too
            few steps for AdaLoRA.
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
    """Save the trained adapter or full model with tokenizer and chat template.

    AutoPeftModelForCausalLM loads the folder of an adapter, AutoModelForCausalLM that of a full model.

    Args:
        model: the trained PeftModel or model.
        base: the base model, which the adapter's configuration names.
        tokenizer: the folder of the prepared tokenizer.
        folder: where to save the files.
        dtype: the number format of a full model: that of the base model, so that both have the same size.
    """
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path, config.revision = base.place, base.revision
        # The adapter contains the rows of added tokens. By default, PEFT would save two full embedding matrices, too.
        model.save_pretrained(folder, save_embedding_layers=False)
        # PEFT's model card. Publish writes its own.
        (folder / "README.md").unlink(missing_ok=True)
    else:
        model.to(dtype).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


def load_weights(model: Any, path: Path) -> None:  # noqa: ANN401
    """Load the weights of a published adapter into the adapter of `model`, a PeftModel with the same settings.

    Raises:
        StageError: BaseModelUnsupported, when the tensors differ in name or shape, or are not all finite.
    """
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = load_file(path)
    shapes = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (state, tensors))
    problem = difference(*shapes)
    if not problem and not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        problem = "it has weights that are NaN or infinite"
    if problem:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED,
            f"cannot load the weights of spec.baseModel.adapter: {problem}",
            "Choose another adapter, or remove spec.baseModel.adapter to train from the base model.",
        )
    set_peft_model_state_dict(model, tensors)


def difference(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Return the first tensor that is missing, superfluous or of another shape, as text; empty if there is none."""
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            wanted, given = (str(list(shape)) if (shape := each.get(name)) else "none" for each in (expected, found))
            return f"expected the tensor {name} with the shape {wanted}, found {given}"
    return ""


def _lora(lora: Lora, model: Any, rows: dict[str, list[int]] | None) -> LoraConfig:  # noqa: ANN401
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=float(lora.dropout),
        target_modules=_targets(lora.target_modules, model, "spec.adapter.lora.targetModules"),
        use_rslora=lora.rs_lora,
        trainable_token_indices=rows,
        task_type=_task_type(model),
    )


def _adalora(adalora: AdaLora, model: Any, rows: dict[str, list[int]] | None, steps: int) -> AdaLoraConfig:  # noqa: ANN401
    warm, final = int(_WARM_SHARE * steps), math.ceil(_FINAL_SHARE * steps)
    if warm >= steps - final:
        raise StageError(
            Reason.INVALID_SPEC,
            f"spec.adapter.method AdaLoRA needs steps in which to prune ranks: expected at least 2 optimizer steps, "
            f"found {steps}; increase spec.training.epochs or spec.training.maxSteps",
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
        task_type=_task_type(model),
    )


def _task_type(model: Any) -> str | None:  # noqa: ANN401
    """Return PEFT's task type. A multimodal model has none: PEFT then records the class that AutoPeftModel loads."""
    return None if is_multimodal(model) else "CAUSAL_LM"


def _ia3(ia3: Ia3, model: Any) -> IA3Config:  # noqa: ANN401
    targets = _targets(ia3.target_modules, model, "spec.adapter.ia3.targetModules")
    if targets == _ALL_LINEAR:
        # With all-linear, PEFT saves full module paths, and then refuses to load them, because the names of the
        # feed-forward modules are not among them.
        targets = sorted({name.rpartition(".")[2] for name in _linear_layers(model)})
    feedforward = [name for name in targets if any(_is_named(name, wanted) for wanted in ia3.feedforward_modules)]
    stray = {wanted for wanted in ia3.feedforward_modules if not any(_is_named(name, wanted) for name in feedforward)}
    if stray:
        raise StageError(
            Reason.INVALID_SPEC,
            f"expected spec.adapter.ia3.feedforwardModules to be among spec.adapter.ia3.targetModules "
            f"({', '.join(targets)}), found {', '.join(sorted(stray))}",
        )
    return IA3Config(target_modules=targets, feedforward_modules=feedforward, task_type=_task_type(model))


def _targets(wanted: list[str], model: Any, field: str) -> list[str] | str:  # noqa: ANN401
    """Return the modules that get an adapter, by the last part of their names.

    In a multimodal model, other parts have modules of the same names. So they are listed with their full names.
    """
    prefix, refused = prefix_of(model), _refused(model)
    if wanted == [_ALL_LINEAR]:
        linear = _linear_layers(model)
        others = any(isinstance(module, nn.Linear) and name not in linear for name, module in _but_head(model))
        return linear if others or refused else _ALL_LINEAR
    # Exclude the embedding and the head: the loss reads the weight of the head directly, without an adapter's update.
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        and name.startswith(prefix)
        and name.rpartition(".")[2] not in refused
    }
    allowed = sorted(
        {name.rpartition(".")[2] for name, module in modules.items() if all(module is not layer for layer in layers)}
    )
    for target in wanted:
        matching = [module for name, module in modules.items() if _is_named(name, target)]
        if not matching or any(module is layer for module in matching for layer in layers):
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected {field} to be [{_ALL_LINEAR}] or a list of {', '.join(allowed)}, found {target!r}. The rows "
                "of added tokens are always trained and need no entry",
            )
    if prefix:
        return [name for name in modules if any(_is_named(name, target) for target in wanted)]
    return wanted


def _linear_layers(model: Any) -> list[str]:  # noqa: ANN401
    """Return the names of the linear layers that can have an adapter: those of the language model, without the head.

    A subclass in the model's code, such as the router of Llama 4, returns more than the product, which PEFT's layers
    cannot add to. Subclasses of other libraries, such as the quantized layers of bitsandbytes, can have an adapter.
    """
    prefix, refused = prefix_of(model), _refused(model)
    return [
        name
        for name, module in _but_head(model)
        if isinstance(module, nn.Linear)
        and name.startswith(prefix)
        and name.rpartition(".")[2] not in refused
        and (type(module).forward is nn.Linear.forward or not type(module).__module__.startswith("transformers."))
    ]


def _refused(model: Any) -> frozenset[str]:  # noqa: ANN401
    """Return the last parts of the names of linear layers that PEFT does not take.

    - In mixture-of-experts models whose experts Transformers 5 fused into one tensor, PEFT reads the names of the
      experts' former layers as that tensor. It would train several times as many parameters, allows no dropout, and
      writes an adapter that vLLM does not load. So the experts stay frozen, as in models without such layers.
    - In Mamba layers, the kernel reads the weight of `out_proj` directly, without an adapter's update.
    """
    kind = model.config.get_text_config().model_type
    experts = _MOE_TARGET_MODULE_MAPPING.get(_MODEL_TO_CONVERSION_PATTERN.get(kind, ""), {})
    return frozenset(experts) | (_MAMBA_LAYERS if kind in _MAMBA else frozenset())


def _but_head(model: Any) -> list[tuple[str, nn.Module]]:  # noqa: ANN401
    head = model.get_output_embeddings()
    return [(name, module) for name, module in model.named_modules() if module is not head]


def _is_named(name: str, target: str) -> bool:
    """Return whether a module's name is, or ends with, a target module's name."""
    return name == target or name.endswith(f".{target}")


def _vocabulary_layers(model: Any) -> list[Any]:  # noqa: ANN401
    """Return the embedding, and the output head if it is not tied to it."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if head.weight is embedding.weight else [embedding, head]


def _name(model: Any, layer: Any) -> str:  # noqa: ANN401
    """Return the last part of a layer's name, as used in PEFT's configuration."""
    return str(next(name for name, module in model.named_modules() if module is layer)).rpartition(".")[2]

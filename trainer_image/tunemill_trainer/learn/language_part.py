"""The language model inside a multimodal model: the part that is trained."""

from collections.abc import Mapping
from typing import Any

from tunemill_trainer.bases import architectures


def auto_class(config: Mapping[str, Any]) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return the class of Transformers that loads a base model as servers do.

    Args:
        config: the model's config.json. AutoModelForCausalLM would load only the language model of some multimodal
            models, with other tensor names.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    return AutoModelForMultimodalLM if architectures.is_multimodal(config) else AutoModelForCausalLM


def is_multimodal(model: Any) -> bool:  # noqa: ANN401
    """Return whether a loaded model, without an adapter, has other parts than its language model."""
    return model.config.get_text_config() is not model.config


def prefix_of(model: Any) -> str:  # noqa: ANN401
    """Return the name of the language model without its head, with a dot at the end; empty if there is no other part.

    It is the module that has the embedding of the tokens, for example `model.language_model.` in Gemma 3.
    """
    if not is_multimodal(model):
        return ""
    return f"{_parent_of_embedding(model)}."


def without_head(model: Any) -> Any:  # noqa: ANN401
    """Return the model without its output head: a module that computes the hidden states."""
    # Llama 4 has no module of the name that `base_model` looks for, and returns itself.
    return model.get_submodule(_parent_of_embedding(model)) if model.base_model is model else model.base_model


def _parent_of_embedding(model: Any) -> str:  # noqa: ANN401
    embedding = model.get_input_embeddings()
    name: str = next(name for name, module in model.named_modules() if module is embedding)
    return name.rpartition(".")[0]


def freeze_other_parts(model: Any) -> None:  # noqa: ANN401
    """Exclude everything but the language model and its head from training."""
    prefix, head = prefix_of(model), model.get_output_embeddings()
    for name, parameter in model.named_parameters():
        if not name.startswith(prefix) and parameter is not head.weight:
            parameter.requires_grad = False

"""Loading: the base model from the Hub, new rows of its vocabulary, and an adapter on top of it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.hub import Hub
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.prepared import BaseModel, Tokens


def fetch_base(hub: Hub, base: BaseModel) -> Path:
    """Download configuration and weights of a base model at its commit; return the folder.

    Raises:
        StageError: what `hub.hub_errors` knows.
    """
    # Weights are safetensors only; a repository's second copies of them have other names (consolidated, original/…).
    return hub.download(base.id, base.revision, ["*.json", "model*.safetensors"])


def load_base(folder: Path, device: Device, dtype: torch.dtype) -> Any:  # noqa: ANN401 - transformers ships no types
    """Load the model that `fetch_base` downloaded onto the device.

    Attention is what Transformers takes by default: sdpa, and eager for models that sdpa cannot serve (Gemma 2).

    Raises:
        StageError: BaseModelUnsupported, when it is no causal language model with safetensors weights.
    """
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, device_map={"": device.torch_name}, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"spec.baseModel could not be loaded as a causal language model: {error}"
        ) from error


def extend_vocabulary(model: Any, tokens: Tokens) -> None:  # noqa: ANN401
    """Give the new tokens rows in the embedding, and in the head when it is not the same, with the mean of all rows.

    Nothing is padded: an embedding of another size than the tokenizer's could not be loaded by AutoPeft.
    """
    if tokens.vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens.vocabulary, mean_resizing=False)
    new = [token.id for token in tokens.added]
    if not new:
        return
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[new] = layer.weight[: min(new)].float().mean(dim=0).to(layer.weight.dtype)


def load_adapter(model: Any, folder: Path) -> Any:  # noqa: ANN401
    """Put a saved adapter onto a base model whose vocabulary is extended already; for inference."""
    return PeftModel.from_pretrained(model, str(folder)).eval()

"""Loads the base model from the Hub, extends its vocabulary, and loads trained adapters and full models."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM, get_peft_model
from safetensors import SafetensorError
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.training import Adapter

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import new_rows
from tunemill_trainer.learn.adapter import adapter_config, load_weights
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.language_part import auto_class
from tunemill_trainer.learn.out_of_memory import release, watched_log
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.storage import base_files
from tunemill_trainer.storage.base_files import ADAPTER_WEIGHTS
from tunemill_trainer.storage.hub import ADAPTER_FIELD, READ_FIELD, Hub
from tunemill_trainer.storage.model_cache import ModelCache


def fetch_base(hub: Hub, base: BaseModel, cache: ModelCache | None) -> Path:
    """Download configuration and weights of a base model at its commit; return the folder.

    Args:
        hub: the Hub.
        base: the model and its commit.
        cache: the shared cache, which is kept within its size limit. `runner` sets its path, because huggingface_hub
            reads that at import.

    Raises:
        StageError: the reasons of `hub.hub_errors`; BaseModelNotFound, when a file differs from the one that prepare
            recorded.
    """
    return _fetch(hub, base, cache, base_files.LOADED, READ_FIELD)


def fetch_adapter(hub: Hub, adapter: BaseModel | None, cache: ModelCache | None) -> Path | None:
    """Download the weights of the adapter from which training starts; return the file, or None without an adapter.

    Raises:
        StageError: as `fetch_base`.
    """
    if adapter is None:
        return None
    return _fetch(hub, adapter, cache, [ADAPTER_WEIGHTS], ADAPTER_FIELD) / ADAPTER_WEIGHTS


def _fetch(hub: Hub, model: BaseModel, cache: ModelCache | None, patterns: list[str], field: str) -> Path:
    if cache is not None:
        cache.make_room(model.id, model.revision)
        cache.hold(model.id, model.revision)
    folder = hub.model(model.id, field).download(model.revision, patterns)
    if cache is not None:
        cache.make_room()
    base_files.check(model, folder, patterns, field)
    return folder


def model_type(folder: Path) -> str:
    """Return `model_type` of a model's configuration, for example gemma2; empty if it has none."""
    from transformers import PreTrainedConfig

    configuration, _ = PreTrainedConfig.get_config_dict(folder)
    return str(configuration.get("model_type", ""))


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the number format in which a model's weights are stored; FP32 if its configuration does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    found: torch.dtype | None = config.dtype or config.get_text_config().dtype
    return found or torch.float32


@tracing.step("load model")
def load_base(folder: Path, device: Device, dtype: torch.dtype, quantization: Quantization = Quantization.NONE) -> Any:  # noqa: ANN401 - transformers ships no types
    """Load the model that `fetch_base` downloaded. A multimodal model is loaded with all its parts.

    The attention implementation is the default of Transformers: sdpa, or eager for models without sdpa (Gemma 2).

    Args:
        folder: the folder of the model.
        device: where to load it.
        dtype: dtype of the weights; for a quantized model, of the computation and of the weights that stay unquantized.
        quantization: quantization of all linear layers except the head.

    Raises:
        StageError: BaseModelUnsupported, when it is not a causal language model with safetensors weights, or needs a
            library that is not installed, for example for an attention kernel from the Hub.
    """
    from transformers import PreTrainedConfig

    try:
        configuration, _ = PreTrainedConfig.get_config_dict(folder)
        # An error while a weight is quantized is logged by Transformers, and is missing in the exception.
        with watched_log("transformers"):
            return auto_class(configuration).from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device.torch_name},
                use_safetensors=True,
                trust_remote_code=False,
                quantization_config=_quantized(quantization, dtype),
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"cannot load spec.baseModel as a causal language model: {error}"
        ) from error


def extend_vocabulary(model: Any, tokens: Tokens) -> None:  # noqa: ANN401
    """Add rows for the added tokens to the embedding, and to the output head if it is not tied.

    A new row is the mean of the rows of the tokens into which the base model's tokenizer splits the added token, or of
    all rows if these are not known. The embedding is not padded: AutoPeft expects the size of the tokenizer.
    """
    if tokens.vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(tokens.vocabulary, mean_resizing=False)
    new = [token.id for token in tokens.added]
    if not new:
        return
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = layer.weight
            for token in tokens.added:
                known = [piece for piece in token.pieces if piece not in new]
                rows = weight[known] if known else weight[: min(new)]
                weight[token.id] = rows.mean(dim=0, dtype=torch.float32).to(weight.dtype)


def is_adapter(folder: Path) -> bool:
    """Return whether a folder with a trained or published model has an adapter, and not a full model."""
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: Any, folder: Path) -> Any:  # noqa: ANN401
    """Load an adapter on `model`, the base model with extended vocabulary, for inference."""
    # PEFT mistakes the ranks that AdaLoRA saves for LoRA's rank_pattern.
    warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
    # The class is given explicitly: an adapter from a user's own trainer may lack a task type.
    tuned = PeftModelForCausalLM.from_pretrained(model, str(folder)).eval()
    new_rows.write_for_inference(tuned)
    return tuned


class ModelLoader:
    """Loads the base model or the tuned model for inference, with at most one of them in memory.

    Args:
        base: the folder of the base model.
        device: where to load models.
        dtype: dtype of the weights.
        quantization: quantization of the base model.
    """

    def __init__(
        self, base: Path, device: Device, dtype: torch.dtype, quantization: Quantization = Quantization.NONE
    ) -> None:
        self._base = base
        self._device = device
        self._dtype = dtype
        self._quantization = quantization
        self._loaded: Any = None
        self._is_base = False

    def base(self) -> Any:  # noqa: ANN401
        """Return the base model, loading it unless it is loaded already."""
        if not self._is_base:
            self.release()
            self._loaded = load_base(self._base, self._device, self._dtype, self._quantization).eval()
            self._is_base = True
        return self._loaded

    def tuned(self, trained: Path, tokens: Tokens) -> Any:  # noqa: ANN401
        """Return the tuned model: the adapter on the base model, or the full model, which replaces the base model.

        The caller must not keep references to the base model, otherwise it stays in memory.
        """
        if is_adapter(trained):
            model = self.base()
            extend_vocabulary(model, tokens)
            self._loaded, self._is_base = load_adapter(model, trained), False
        else:
            self.release()
            self._loaded = load_base(trained, self._device, self._dtype).eval()
        return self._loaded

    def continued(self, weights: Path, adapter: Adapter, tokens: Tokens) -> Any:  # noqa: ANN401
        """Return the base model with the adapter from which training started.

        Args:
            weights: the adapter's weights.
            adapter: its settings.
            tokens: the changes of the vocabulary.
        """
        model = self.base()
        extend_vocabulary(model, tokens)
        tuned = get_peft_model(model, adapter_config(adapter, model, tokens, steps=1))
        load_weights(tuned, weights)
        new_rows.write_for_inference(tuned)
        self._loaded, self._is_base = tuned.eval(), False
        return self._loaded

    def release(self) -> None:
        """Unload the model and release its memory."""
        self._loaded, self._is_base = None, False
        release()


def _quantized(quantization: Quantization, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Return the configuration of bitsandbytes; None without quantization."""
    from transformers import BitsAndBytesConfig

    if quantization is Quantization.NONE:
        return None
    # bitsandbytes warns at each matrix product that Int8 computes in FP16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

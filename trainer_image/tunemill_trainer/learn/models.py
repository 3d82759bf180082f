"""Loading: the base model from the Hub, new rows of its vocabulary, and what was trained on top of it."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM
from safetensors import SafetensorError
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization

from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import new_rows
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.out_of_memory import release, watched_log
from tunemill_trainer.prepared import BaseModel, Tokens
from tunemill_trainer.process import tracing
from tunemill_trainer.storage import base_files
from tunemill_trainer.storage.hub import Hub
from tunemill_trainer.storage.model_cache import ModelCache


def fetch_base(hub: Hub, base: BaseModel, cache: ModelCache | None) -> Path:
    """Download configuration and weights of a base model at its commit; return the folder.

    Args:
        hub: where it is.
        base: the model.
        cache: is kept within its bound; where it lies is set by `runner`, as huggingface_hub reads it at its import.

    Raises:
        StageError: what `hub.hub_errors` knows; BaseModelNotFound, when the files are not those that prepare has seen.
    """
    if cache is not None:
        cache.make_room(base.id, base.revision)
        cache.hold(base.id, base.revision)
    folder = hub.download(base.id, base.revision, base_files.LOADED)
    if cache is not None:
        cache.make_room()
    base_files.check(base, folder)
    return folder


def model_type(folder: Path) -> str:
    """Return the family of a model as Transformers calls it, for example gemma2; empty when its files do not say."""
    from transformers import PretrainedConfig

    configuration, _ = PretrainedConfig.get_config_dict(folder)
    return str(configuration.get("model_type", ""))


@tracing.step("load model")
def load_base(folder: Path, device: Device, dtype: torch.dtype, quantization: Quantization = Quantization.NONE) -> Any:  # noqa: ANN401 - transformers ships no types
    """Load the model that `fetch_base` downloaded onto the device.

    Attention is what Transformers takes by default: sdpa, and eager for models that sdpa cannot serve (Gemma 2).

    Args:
        folder: with the model.
        device: where it goes.
        dtype: of the weights; of a quantised model that of the computation and of what is not quantised.
        quantization: of the linear layers but the head.

    Raises:
        StageError: BaseModelUnsupported, when it is no causal language model with safetensors weights, or asks for a
            library that we have not, as one with attention from the Hub does.
    """
    from transformers import AutoModelForCausalLM

    try:
        # Transformers logs what goes wrong while it quantises a weight, and raises an error that does not say it.
        with watched_log("transformers"):
            return AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device.torch_name},
                use_safetensors=True,
                trust_remote_code=False,
                quantization_config=_quantized(quantization, dtype),
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise StageError(
            Reason.BASE_MODEL_UNSUPPORTED, f"spec.baseModel could not be loaded as a causal language model: {error}"
        ) from error


def extend_vocabulary(model: Any, tokens: Tokens) -> None:  # noqa: ANN401
    """Give the new tokens rows in the embedding, and in the head when it is not the same.

    A row begins as the mean of the rows of the pieces that the base model writes the token with. Where those are not
    known, it is the mean of all rows. Nothing is padded: an embedding of another size than the tokenizer's could not be
    loaded by AutoPeft.
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
    """Tell whether a folder that train left, or publish pushed, holds an adapter and not a whole model."""
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: Any, folder: Path) -> Any:  # noqa: ANN401
    """Return the tuned model for inference: an adapter on `model`, the base model with its vocabulary extended."""
    # AdaLoRA's saved ranks are not LoRA's rank_pattern, for which PEFT takes them here.
    warnings.filterwarnings("ignore", message="The following rank_pattern keys", category=RuntimeWarning)
    # By its class, as an adapter that somebody else's trainer made may not say what it is for.
    tuned = PeftModelForCausalLM.from_pretrained(model, str(folder)).eval()
    new_rows.write_for_inference(tuned)
    return tuned


class OneModel:
    """The base model and what was trained from it, for inference, of which memory never holds more than one.

    Args:
        base: the base model's folder.
        device: where models go.
        dtype: of their weights.
        quantization: of the base model.
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
        """Return the base model. It is an adapter's base, too, as long as nothing else was loaded."""
        if not self._is_base:
            self.release()
            self._loaded = load_base(self._base, self._device, self._dtype, self._quantization).eval()
            self._is_base = True
        return self._loaded

    def tuned(self, trained: Path, tokens: Tokens) -> Any:  # noqa: ANN401
        """Return what train left: its adapter on the base model, or the whole model, which takes the base's place.

        Whoever still refers to the base model keeps it in memory.
        """
        if is_adapter(trained):
            model = self.base()
            extend_vocabulary(model, tokens)
            self._loaded, self._is_base = load_adapter(model, trained), False
        else:
            self.release()
            self._loaded = load_base(trained, self._device, self._dtype).eval()
        return self._loaded

    def release(self) -> None:
        """Give the memory of the loaded model back."""
        self._loaded, self._is_base = None, False
        release()


def _quantized(quantization: Quantization, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Return the settings for bitsandbytes; None for weights as they are."""
    from transformers import BitsAndBytesConfig

    if quantization is Quantization.NONE:
        return None
    # They say once per matrix product that Int8 computes in FP16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
    if quantization is Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )

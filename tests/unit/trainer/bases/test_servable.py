"""How vLLM serves each family: what the catalogue says about adapters is what the publish stage finds."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from trainer.bases import vllm_source
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as TEXT_MODELS
from tunemill_api.training import Adapter
from tunemill_trainer.bases import catalogue
from tunemill_trainer.learn.adapter import adapter_config
from tunemill_trainer.learn.language_part import prefix_of
from tunemill_trainer.prepared import Tokens
from tunemill_trainer.release import servability

pytestmark = pytest.mark.slow
TYPES = [(family, name) for family in catalogue.families() for name in family.types]
NO_TOKENS = Tokens("Reuse", (), (), 0, 0)
LINEAR_ATTENTION = {"layer_types": ["linear_attention", "full_attention"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen3_next": LINEAR_ATTENTION,
    "qwen3_5": LINEAR_ATTENTION,
    "qwen3_5_moe": LINEAR_ATTENTION,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "layer_types": ["mamba", "attention"]},
    "llama4": {"head_dim": 16},
    "ministral": {"head_dim": 16},
}
SMALL = {"num_hidden_layers": 2, "vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def a_model(model_type: str) -> Any:
    """A model of two layers without weights, with the other settings of its configuration class."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    settings = SMALL | SETTINGS.get(model_type.removesuffix("_text"), {})
    config = AutoConfig.for_model(model_type)
    if config.get_text_config() is not config:
        config = AutoConfig.for_model(model_type, text_config=settings | {"model_type": config.text_config.model_type})
    else:
        config = AutoConfig.for_model(model_type, **settings)
    loader = AutoModelForCausalLM if model_type in TEXT_MODELS else AutoModelForMultimodalLM
    with torch.device("meta"):
        return loader.from_config(config)


@pytest.mark.parametrize(("family", "model_type"), TYPES, ids=[f"{family.name}, {name}" for family, name in TYPES])
def test_an_adapter_is_servable_if_the_catalogue_says_so(family: catalogue.Family, model_type: str) -> None:
    """With the default settings, PEFT makes an adapter for every family, of its language model only.

    What is served as an adapter has only layers that vLLM's own class of the model has.
    """
    try:
        model = a_model(model_type)
    except ValueError as error:
        pytest.skip(f"only a part of another model: {str(error)[:60]}")
    prefix = prefix_of(model)
    with torch.device("meta"):
        tuned = get_peft_model(model, adapter_config(Adapter(), model, NO_TOKENS, 10))
    names = [name.replace(".default", "") for name, each in tuned.named_parameters() if each.requires_grad]
    assert names
    assert all(name.startswith(f"base_model.model.{prefix}") for name in names)
    adapter = servability.Adapter({"peft_type": "LORA"}, dict.fromkeys(names, (1, 1)), model_type, 256, 256)
    assert bool(servability._of_tensors(adapter)) == (model_type in family.merged)
    if model_type in family.merged:
        return
    served = vllm_source.linear_layers(type(model).__name__)
    text = TEXT_MODELS.get(model.config.get_text_config().model_type)
    if served is not None and text:
        # vLLM's class of a multimodal model has that of its language model inside.
        served = served | (vllm_source.linear_layers(text) or set())
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in names}
    assert served is None or layers <= served

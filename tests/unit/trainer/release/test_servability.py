"""Which adapters a server can load without merging."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tunemill_api.data import TokenizerMode
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import ServingTarget
from tunemill_trainer.release.servability import Adapter, auto_mode, judge, read_adapter

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def lora(**config: object) -> dict:
    """The relevant part of a plain LoRA's adapter_config.json, with changes."""
    return {"peft_type": "LORA", "r": 16, "bias": "none", "init_lora_weights": True, **config}


def adapter(
    config: dict | None = None,
    *names: str,
    vocabulary: int = 800,
    model_type: str = "gemma2",
    **shapes: tuple[int, ...],
) -> Adapter:
    """An adapter on a base model of 800 tokens with plain LoRA weights, and additional tensors."""
    plain = {f"{LAYER}.lora_A.weight": (16, 128), f"{LAYER}.lora_B.weight": (128, 16)}
    return Adapter(config or lora(), plain | dict.fromkeys(names, (1, 1)) | shapes, model_type, 800, vocabulary)


def problems(adapter: Adapter) -> str:
    """The reasons why vLLM cannot load it, in one text."""
    return "; ".join(judge(adapter, ServingTarget.VLLM).problems)


def test_plain_lora_is_servable():
    """With the smallest rank of vLLM's flag that is large enough."""
    verdict = judge(adapter(), ServingTarget.VLLM)
    assert verdict.servable
    assert verdict.max_rank == 16
    assert judge(adapter(lora(r=24)), ServingTarget.VLLM).max_rank == 32
    assert judge(adapter(lora(r=512, use_rslora=True)), ServingTarget.VLLM).servable


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (lora(peft_type="IA3"), "IA3"),
        (lora(peft_type="ADALORA"), "ADALORA"),
        (lora(modules_to_save=["embed_tokens"]), "modules_to_save"),
        (lora(trainable_token_indices={"embed_tokens": [800]}), "trainable_token_indices"),
        (lora(use_dora=True), "use_dora"),
        (lora(bias="lora_only"), "bias"),
        (lora(lora_bias=True), "bias"),
        (lora(init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
        (lora(init_lora_weights="olora"), "olora"),
        (lora(alora_invocation_tokens=[5]), "alora_invocation_tokens"),
        (lora(use_bdlora=True), "use_bdlora"),
        (lora(use_qalora=True), "use_qalora"),
        (lora(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
        (lora(r=1024), "rank 1024"),
    ],
)
def test_unsupported_settings_are_reported(config: dict, named: str):
    """Every problem names its setting."""
    assert named in problems(adapter(config))


def test_gaussian_initialization_is_supported():
    """Only initializations that change the base model's weights are not."""
    assert judge(adapter(lora(init_lora_weights="gaussian")), ServingTarget.VLLM).servable


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight",
        f"{LAYER}.lora_E",
        "base_model.model.model.layers.0.self_attn.k_proj.ia3_l",
        f"{LAYER}.lora_magnitude_vector.weight",
    ],
)
def test_tensors_that_are_no_lora_weights(name: str):
    """The problem names the tensor."""
    assert name in problems(adapter(None, name))


def test_a_copy_of_the_base_embedding_is_ignored():
    """PEFT saves it with an adapter on the embedding, and vLLM ignores it."""
    assert not problems(adapter(None, "base_model.model.model.embed_tokens.base_layer.weight"))


def test_layers_without_lora_support():
    """A GPT-2 adapter, for example."""
    assert "c_attn" in problems(adapter(None, "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"))


def test_layers_of_gemma_4():
    """Adapters of the layers for its per-layer embeddings can be served, too."""
    names = ("layers.0.per_layer_input_gate", "layers.0.per_layer_projection", "per_layer_model_projection")
    tensors = (f"base_model.model.model.{name}.lora_{side}.weight" for name in names for side in "AB")
    assert not problems(adapter(None, *tensors, model_type="gemma4_text"))


@pytest.mark.parametrize(
    ("model_type", "layers"),
    [
        (
            "granitemoehybrid",
            ["mamba.in_proj", "mamba.out_proj", "shared_mlp.input_linear", "shared_mlp.output_linear"],
        ),
        ("lfm2", ["conv.in_proj", "conv.out_proj", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"]),
        ("nemotron_h", ["mixer.in_proj"]),
    ],
)
def test_layers_of_hybrid_models(model_type: str, layers: list[str]):
    """Those of Mamba and of convolutions, in the families with which vLLM was measured."""
    tensors = [f"base_model.model.model.layers.0.{name}.lora_{side}.weight" for name in layers for side in "AB"]
    assert not problems(adapter(None, *tensors, model_type=model_type))
    assert problems(adapter(None, *tensors, model_type="falcon_h1"))


def test_layers_whose_rows_vllm_reorders():
    """For the rotary embedding of Llama 4. Other layers of the family can have an adapter."""
    config, other = lora(), "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    assert "q_proj, whose rows the server reorders" in problems(adapter(config, model_type="llama4_text"))
    assert not judge(Adapter(config, {other: (128, 16)}, "llama4_text", 800, 800), ServingTarget.VLLM).problems


def test_an_adapter_on_the_vocabulary():
    """Only for families that support it, and only with the base model's vocabulary size."""
    embedding, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    both = {f"{embedding}.lora_embedding_A": (16, 800), f"{embedding}.lora_embedding_B": (128, 16)}
    assert "embed_tokens, which the server does not support for gemma2 models" in problems(adapter(**both))
    assert not problems(adapter(model_type="qwen3", **both))
    longer = {f"{head}.lora_A.weight": (16, 128), f"{head}.lora_B.weight": (808, 16)}
    assert "lm_head has 808 rows, the base model 800" in problems(adapter(model_type="llama", **longer))


def test_more_tokens_than_the_base_has_rows():
    """The base model would get ids for which it has no rows."""
    assert "more tokens" in problems(adapter(vocabulary=808))


def test_a_problem_of_every_layer_is_reported_once():
    """Otherwise the status would repeat one sentence."""
    names = [f"model.layers.{layer}.mlp.fc1.lora_A.weight" for layer in range(30)]
    assert problems(adapter(None, *names)).count("fc1") == 1


def test_transformers_cannot_serve_adapters():
    """It loads full models only."""
    assert not judge(adapter(), ServingTarget.TRANSFORMERS).servable


def test_files_are_read_without_their_tensors(tmp_path: Path):
    """Names and shapes are in the header of the file."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 700}))
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora()))
    save_file({"x.lora_A.weight": np.zeros((16, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    found = read_adapter(tmp_path, tmp_path, 708)
    assert found == Adapter(lora(), {"x.lora_A.weight": (16, 4)}, "llama", 700, 708)


@pytest.mark.parametrize(
    ("changes", "mode", "named"),
    [
        ({}, TokenizerMode.TEXT, "vLLM loads the adapter without merging"),
        (
            {"publish": {"artifacts": ["Adapter", "Merged"]}},
            TokenizerMode.TEXT,
            "vLLM loads the adapter without merging",
        ),
        ({"adapter": {"method": "IA3"}}, TokenizerMode.TEXT, "IA3"),
        ({"adapter": {"method": "AdaLoRA"}}, TokenizerMode.EXTEND, "cannot load AdaLoRA adapters"),
        ({"adapter": {"method": "Full"}}, TokenizerMode.EXTEND, "method Full trains all weights"),
        ({"publish": {"serving": "Transformers"}}, TokenizerMode.EXTEND, "transformers serve"),
        ({"publish": {"serving": "None"}}, TokenizerMode.EXTEND, "serving is None"),
        ({"publish": {"artifacts": ["Merged"]}}, TokenizerMode.EXTEND, "only the merged model"),
    ],
)
def test_auto_extends_the_vocabulary_only_if_that_has_no_effect_on_serving(
    changes: dict, mode: TokenizerMode, named: str
):
    """The serving target decides between tags as text and tags as tokens."""
    spec = {
        "baseModel": {"id": "acme/base"},
        "dataset": {"uri": "s3://bucket/calls.jsonl"},
        **changes,
        "publish": {"repository": "acme/tuned", **changes.get("publish", {})},
    }
    found, why = auto_mode(FineTuneSpec.model_validate(spec))
    assert found is mode
    assert named in why


def test_auto_agrees_with_the_rules_of_vllm():
    """Auto keeps tags as text for vLLM because vLLM cannot load added rows."""
    rows = adapter(lora(trainable_token_indices={"embed_tokens": [800]}), vocabulary=801)
    assert not judge(rows, ServingTarget.VLLM).servable
    assert judge(adapter(), ServingTarget.VLLM).servable

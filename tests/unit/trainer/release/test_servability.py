"""Which adapters a server takes as they are."""

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
    """The part of a plain LoRA's adapter_config.json that matters, with changes."""
    return {"peft_type": "LORA", "r": 16, "bias": "none", "init_lora_weights": True, **config}


def adapter(
    config: dict | None = None,
    *names: str,
    vocabulary: int = 800,
    model_type: str = "gemma2",
    **shapes: tuple[int, ...],
) -> Adapter:
    """An adapter on a base of 800 tokens with plain LoRA weights, and more tensors."""
    plain = {f"{LAYER}.lora_A.weight": (16, 128), f"{LAYER}.lora_B.weight": (128, 16)}
    return Adapter(config or lora(), plain | dict.fromkeys(names, (1, 1)) | shapes, model_type, 800, vocabulary)


def problems(adapter: Adapter) -> str:
    """What vLLM has against it, in one text."""
    return "; ".join(judge(adapter, ServingTarget.VLLM).problems)


def test_plain_lora_is_served():
    """With the smallest rank that vLLM's flag takes."""
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
        (lora(rank_pattern={"q_proj": 8}), "rank_pattern"),
        (lora(alpha_pattern={"q_proj": 8}), "alpha_pattern"),
        (lora(layer_replication=[[0, 2], [1, 3]]), "layer_replication"),
        (lora(r=1024), "rank 1024"),
    ],
)
def test_what_the_configuration_may_not_ask_for(config: dict, named: str):
    """Each refusal names the setting that it is about."""
    assert named in problems(adapter(config))


def test_gaussian_starts_are_fine():
    """Only starts that change the base model's weights are refused."""
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
    """The tensor's name is told, as only it leads to the cause."""
    assert name in problems(adapter(None, name))


def test_a_copy_of_the_base_embedding_is_skipped():
    """PEFT saves it beside an adapter on the embedding; vLLM passes it over."""
    assert not problems(adapter(None, "base_model.model.model.embed_tokens.base_layer.weight"))


def test_layers_that_no_adapter_is_expected_for():
    """A GPT-2 adapter, for example."""
    assert "c_attn" in problems(adapter(None, "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"))


def test_an_adapter_on_the_vocabulary():
    """Only for families that allow it, and only with the base model's own number of tokens."""
    embedding, head = "base_model.model.model.embed_tokens", "base_model.model.lm_head"
    both = {f"{embedding}.lora_embedding_A": (16, 800), f"{embedding}.lora_embedding_B": (128, 16)}
    assert "embed_tokens, which the server does not support for gemma2 models" in problems(adapter(**both))
    assert not problems(adapter(model_type="qwen3", **both))
    longer = {f"{head}.lora_A.weight": (16, 128), f"{head}.lora_B.weight": (808, 16)}
    assert "lm_head has 808 rows, the base model 800" in problems(adapter(model_type="llama", **longer))


def test_more_tokens_than_the_base_has_rows():
    """The served base would read ids that it does not have."""
    assert "more tokens" in problems(adapter(vocabulary=808))


def test_a_problem_of_every_layer_is_told_once():
    """Or the status would be full of one sentence."""
    names = [f"model.layers.{layer}.mlp.fc1.lora_A.weight" for layer in range(30)]
    assert problems(adapter(None, *names)).count("fc1") == 1


def test_transformers_serve_takes_no_adapter():
    """It loads full models only."""
    assert not judge(adapter(), ServingTarget.TRANSFORMERS).servable


def test_files_are_read_without_their_tensors(tmp_path: Path):
    """Names and shapes are in the header."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 700}))
    (tmp_path / "adapter_config.json").write_text(json.dumps(lora()))
    save_file({"x.lora_A.weight": np.zeros((16, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    found = read_adapter(tmp_path, tmp_path, 708)
    assert found == Adapter(lora(), {"x.lora_A.weight": (16, 4)}, "llama", 700, 708)


@pytest.mark.parametrize(
    ("wish", "mode", "named"),
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
def test_auto_extends_a_vocabulary_only_where_that_costs_no_server(wish: dict, mode: TokenizerMode, named: str):
    """What is served decides between tags as text and tags as tokens."""
    spec = {
        "baseModel": {"id": "acme/base"},
        "dataset": {"uri": "s3://bucket/calls.jsonl"},
        **wish,
        "publish": {"repository": "acme/tuned", **wish.get("publish", {})},
    }
    found, why = auto_mode(FineTuneSpec.model_validate(spec))
    assert found is mode
    assert named in why


def test_auto_agrees_with_what_is_served():
    """Where Auto keeps tags as text for vLLM, the rule that refuses new rows is why."""
    rows = adapter(lora(trainable_token_indices={"embed_tokens": [800]}), vocabulary=801)
    assert not judge(rows, ServingTarget.VLLM).servable
    assert judge(adapter(), ServingTarget.VLLM).servable

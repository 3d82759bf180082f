"""Decides whether a server can load an adapter without merging it, without starting the server.

The rules restate those of vLLM 0.32: its checks of the adapter's configuration, its parsing of tensor names, and its
lists of layers. `transformers serve` loads full models only.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill_api.data import TokenizerMode
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact, ServingTarget
from tunemill_api.training import AdapterMethod

from tunemill_trainer.storage.local_model import shapes_of

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's `--max-lora-rank` accepts."""

_LAYERS = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
    *("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),  # Gemma 4
}
_LAYERS_OF = {
    "granitemoehybrid": {"in_proj", "out_proj", "input_linear", "output_linear"},
    "lfm2": {"in_proj", "out_proj", "w1", "w2", "w3"},
    "nemotron_h": {"in_proj"},
}
"""More layers of a `model_type`. PEFT has no LoRA for Mamba's `out_proj` in Nemotron."""
_VOCABULARY_LAYERS = {"embed_tokens", "lm_head"}
FAMILIES_WITH_VOCABULARY_LORA = frozenset(
    {
        *("granite", "granitemoe", "granitemoehybrid", "lfm2", "lfm2_moe", "llama", "llama4", "llama4_text"),
        *("nemotron", "nemotron_h", "phi3", "qwen3", "qwen3_moe"),
    }
)
"""The values of `model_type` for which vLLM supports LoRA on the embedding and the output layer."""
_REORDERED = {(family, layer) for family in ("llama4", "llama4_text") for layer in ("q_proj", "k_proj")}
"""The layers of a `model_type` whose rows vLLM reorders when it loads the model, but not when it loads an adapter."""
_UNSUPPORTED_INITIALIZATIONS = ("pissa", "olora", "corda", "loftq")
_LORA_WEIGHT = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?:(?P<side>[AB])(?:\.weight)?|embedding_(?P<table>[AB]))"
)
_BASE_WEIGHT = re.compile(r"\.(?:embed_tokens|lm_head)\.base_layer\.weight$")
"""A copy of the base model's embedding, which vLLM ignores."""


@dataclass(frozen=True)
class Adapter:
    """The properties of an adapter that decide whether vLLM can load it.

    Attributes:
        config: the content of adapter_config.json.
        shapes: the shape of each tensor by name.
        model_type: `model_type` of the base model's config.json.
        base_vocabulary: rows of the base model's embedding.
        vocabulary: rows that the adapter's tokenizer needs.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    model_type: str
    base_vocabulary: int
    vocabulary: int


@dataclass(frozen=True)
class Verdict:
    """Whether the server can load the adapter.

    Attributes:
        problems: the reasons why it cannot, one clause each; empty if it can.
        max_rank: the smallest `--max-lora-rank` that is large enough for the adapter.
    """

    problems: tuple[str, ...]
    max_rank: int

    @property
    def servable(self) -> bool:
        """Whether the server can load the adapter without merging."""
        return not self.problems


def auto_mode(spec: FineTuneSpec) -> tuple[TokenizerMode, str]:
    """Return what spec.tokenizer.mode Auto means for tags that the base model lacks: Text or Extend, and the reason.

    A tag that is a single token takes fewer decoding steps and cannot be misspelled. But vLLM cannot load an adapter
    with rows for added tokens. So tags stay text when that lets the server load the adapter without merging.
    """
    method, publish = spec.adapter.method, spec.publish
    if method is AdapterMethod.IA3:
        return TokenizerMode.TEXT, "IA3 cannot train the rows of added tokens"
    of_method = method is not AdapterMethod.LORA
    only_merged = not {Artifact.AUTO, Artifact.ADAPTER} & set(publish.artifacts)
    # The cases in which no server loads the adapter by itself; the first that applies is reported.
    rules = (
        (method is AdapterMethod.FULL, "the method Full trains all weights, so that every server loads added tokens"),
        (publish.serving is ServingTarget.NONE, "spec.publish.serving is None, and PEFT loads rows for added tokens"),
        (publish.serving is ServingTarget.TRANSFORMERS, "`transformers serve` loads the merged model"),
        (of_method, f"vLLM cannot load {method.value} adapters and loads the merged model"),
        (only_merged, "only the merged model is published"),
    )
    for holds, why in rules:
        if holds:
            return TokenizerMode.EXTEND, why
    return TokenizerMode.TEXT, "vLLM loads the adapter without merging only if it has no rows for added tokens"


def read_adapter(folder: Path, base: Path, vocabulary: int) -> Adapter:
    """Read the properties of an adapter without loading its tensors.

    Args:
        folder: has adapter_config.json and adapter_model.safetensors.
        base: has the base model's config.json.
        vocabulary: rows that the adapter's tokenizer needs.
    """
    base_config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return Adapter(
        config=json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")),
        shapes=shapes_of(folder / "adapter_model.safetensors"),
        model_type=str(base_config.get("model_type", "")),
        base_vocabulary=int((base_config | base_config.get("text_config", {})).get("vocab_size", vocabulary)),
        vocabulary=vocabulary,
    )


def judge(adapter: Adapter, target: ServingTarget) -> Verdict:
    """Return whether a server can load the adapter without merging it into its base model."""
    if target is ServingTarget.TRANSFORMERS:
        return Verdict(("`transformers serve` loads full models only",), 0)
    rank, fitting = _rank(adapter.config), max_lora_rank(adapter.config)
    # A problem of the configuration also shows in the tensors, so report it once.
    problems = _of_config(adapter) or _of_tensors(adapter)
    if not fitting:
        problems.append(f"its rank {rank} is above {LORA_RANKS[-1]}, the server's maximum")
    return Verdict(tuple(dict.fromkeys(problems)), fitting)


def max_lora_rank(config: Mapping[str, Any]) -> int:
    """Return the smallest `--max-lora-rank` for an adapter_config.json; 0 when its rank is above all of them."""
    return next((rank for rank in LORA_RANKS if rank >= _rank(config)), 0)


def _rank(config: Mapping[str, Any]) -> int:
    # In `rank_pattern`, AdaLoRA has lists of flags where LoRA has ranks.
    pattern = (config.get("rank_pattern") or {}).values()
    return max(int(config.get("r") or 0), *(rank for rank in pattern if isinstance(rank, int)), 0)


def _of_config(adapter: Adapter) -> list[str]:
    config = adapter.config
    initialization = config.get("init_lora_weights")
    # Each rule with the problem to report when it is violated.
    rules = (
        (config.get("peft_type") == "LORA", f"its peft_type is {config.get('peft_type')}, not LORA"),
        (not config.get("modules_to_save"), "it contains full layers (modules_to_save)"),
        (not config.get("trainable_token_indices"), "it contains rows for added tokens (trainable_token_indices)"),
        (adapter.vocabulary <= adapter.base_vocabulary, "its tokenizer has more tokens than the base model has rows"),
        (not config.get("use_dora"), "it is a DoRA adapter (use_dora)"),
        (config.get("bias", "none") == "none" and not config.get("lora_bias"), "it trains biases (bias)"),
        (
            not (isinstance(initialization, str) and initialization.lower().startswith(_UNSUPPORTED_INITIALIZATIONS)),
            f"its initialization changes the base model (init_lora_weights: {initialization})",
        ),
        (not config.get("layer_replication"), "it repeats layers of the base model (layer_replication)"),
        (not config.get("alora_invocation_tokens"), "it is an activated LoRA (alora_invocation_tokens)"),
        (not config.get("use_bdlora"), "it is a block-diagonal LoRA (use_bdlora)"),
        (not config.get("use_qalora"), "it is a QALoRA adapter (use_qalora)"),
    )
    return [problem for holds, problem in rules if not holds]


def _of_tensors(adapter: Adapter) -> list[str]:
    problems = []
    for name, shape in sorted(adapter.shapes.items()):
        found = _LORA_WEIGHT.fullmatch(name)
        if found is None:
            if not _BASE_WEIGHT.search(name):
                problems.append(f"its tensor {name} is not a LoRA weight")
            continue
        layer = found["layer"].rpartition(".")[2]
        if layer in _VOCABULARY_LAYERS:
            problems += _of_vocabulary_layer(adapter, layer, found, shape)
        elif layer not in _LAYERS | _LAYERS_OF.get(adapter.model_type, set()):
            problems.append(f"it adapts the layer {layer}, for which the server does not support LoRA")
        elif (adapter.model_type, layer) in _REORDERED:
            problems.append(
                f"it adapts {layer}, whose rows the server reorders in models of the type {adapter.model_type}, but "
                "not in adapters"
            )
    return problems


def _of_vocabulary_layer(adapter: Adapter, layer: str, found: re.Match[str], shape: tuple[int, ...]) -> list[str]:
    if adapter.model_type not in FAMILIES_WITH_VOCABULARY_LORA:
        return [f"it adapts {layer}, which the server does not support for {adapter.model_type} models"]
    # Only two matrices have one row per token: A of the embedding and B of the output layer.
    rows = shape[1] if found["table"] == "A" else shape[0] if (layer, found["side"]) == ("lm_head", "B") else None
    if rows is not None and rows != adapter.base_vocabulary:
        return [f"its {layer} has {rows} rows, the base model {adapter.base_vocabulary}"]
    return []

"""Tells whether a server takes an adapter as it is, before anybody has to find out by starting one.

The rules are those of vLLM 0.33 (its checks of an adapter's configuration, its parsing of tensor names, its lists of
layers), restated. `transformers serve` loads whole models only.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from tunemill_api.data import TokenizerMode
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.publish import Artifact, ServingTarget
from tunemill_api.training import AdapterMethod

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` takes."""

_LAYERS = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"}
_VOCABULARY_LAYERS = {"embed_tokens", "lm_head"}
FAMILIES_WITH_VOCABULARY_LORA = frozenset(
    {
        *("granite", "granitemoe", "granitemoehybrid", "lfm2", "lfm2_moe", "llama", "llama4", "llama4_text"),
        *("nemotron", "nemotron_h", "phi3", "qwen3", "qwen3_moe"),
    }
)
"""Values of `model_type` for which vLLM declares the embedding and the head as layers that an adapter may change."""
_REFUSED_STARTS = ("pissa", "olora", "corda", "loftq")
_LORA_WEIGHT = re.compile(
    r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?:(?P<side>[AB])(?:\.weight)?|embedding_(?P<table>[AB]))"
)
_BASE_WEIGHT = re.compile(r"\.(?:embed_tokens|lm_head)\.base_layer\.weight$")
"""A copy of the base model's own embedding, which is skipped."""


@dataclass(frozen=True)
class Adapter:
    """What the rules look at.

    Attributes:
        config: adapter_config.json.
        shapes: tensor name → shape.
        model_type: of the base model's config.json.
        base_vocabulary: rows of the base model's embedding.
        vocabulary: rows that the tokenizer of the adapter asks for.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    model_type: str
    base_vocabulary: int
    vocabulary: int


@dataclass(frozen=True)
class Verdict:
    """Whether the server takes the adapter.

    Attributes:
        problems: why it does not, one clause each; none means that it does.
        max_rank: the smallest `--max-lora-rank` that the adapter fits into.
    """

    problems: tuple[str, ...]
    max_rank: int

    @property
    def servable(self) -> bool:
        """Whether the server takes the adapter as it is."""
        return not self.problems


def auto_mode(spec: FineTuneSpec) -> tuple[TokenizerMode, str]:
    """Return what spec.tokenizer.mode Auto does about tags that the base model lacks, Text or Extend, and why.

    A tag that is one token is written with fewer steps and cannot be misspelt, but its row makes an adapter that vLLM
    refuses. So tags stay text where that lets a server take the adapter alone.
    """
    method, publish = spec.adapter.method, spec.publish
    if method is AdapterMethod.IA3:
        return TokenizerMode.TEXT, "IA3 cannot train the rows of new tokens"
    of_method = method is not AdapterMethod.LORA
    only_merged = not {Artifact.AUTO, Artifact.ADAPTER} & set(publish.artifacts)
    # Where no server takes the adapter alone, and why; the first that holds is told.
    rules = (
        (method is AdapterMethod.FULL, "the whole model is trained, and every server takes its new tokens"),
        (publish.serving is ServingTarget.NONE, "spec.publish.serving is None, and PEFT loads rows for new tokens"),
        (publish.serving is ServingTarget.TRANSFORMERS, "`transformers serve` gets the merged model"),
        (of_method, f"vLLM takes no {method.value} adapter, and gets the merged model"),
        (only_merged, "only the merged model is published"),
    )
    for holds, why in rules:
        if holds:
            return TokenizerMode.EXTEND, why
    return TokenizerMode.TEXT, "vLLM takes the adapter alone only if it has no rows for new tokens"


def read_adapter(folder: Path, base: Path, vocabulary: int) -> Adapter:
    """Read what the rules look at; no tensor is loaded.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        base: with the base model's config.json.
        vocabulary: rows that the tokenizer of the adapter asks for.
    """
    base_config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "adapter_model.safetensors", framework="np") as tensors:
        shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    return Adapter(
        config=json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")),
        shapes=shapes,
        model_type=str(base_config.get("model_type", "")),
        base_vocabulary=int(base_config.get("vocab_size", vocabulary)),
        vocabulary=vocabulary,
    )


def judge(adapter: Adapter, target: ServingTarget) -> Verdict:
    """Return whether a server takes the adapter without merging it into its base."""
    if target is ServingTarget.TRANSFORMERS:
        return Verdict(("`transformers serve` loads whole models, and no adapters",), 0)
    # AdaLoRA keeps lists of flags where LoRA keeps ranks.
    pattern = (adapter.config.get("rank_pattern") or {}).values()
    ranks = [int(adapter.config.get("r") or 0), *(rank for rank in pattern if isinstance(rank, int))]
    fitting = [rank for rank in LORA_RANKS if rank >= max(ranks)]
    # What the configuration asks for is found again in the tensors.
    problems = _of_config(adapter) or _of_tensors(adapter)
    if not fitting:
        problems.append(f"the rank of {max(ranks)} is above {LORA_RANKS[-1]}, the most that it takes")
    return Verdict(tuple(dict.fromkeys(problems)), fitting[0] if fitting else 0)


def _of_config(adapter: Adapter) -> list[str]:
    config = adapter.config
    start = config.get("init_lora_weights")
    # A rule, and what is wrong where it does not hold.
    rules = (
        (config.get("peft_type") == "LORA", f"it is an adapter of the kind {config.get('peft_type')}, not LORA"),
        (not config.get("modules_to_save"), "it holds whole layers (modules_to_save)"),
        (not config.get("trainable_token_indices"), "it holds rows for new tokens (trainable_token_indices)"),
        (adapter.vocabulary <= adapter.base_vocabulary, "its tokenizer has more tokens than the base model has rows"),
        (not config.get("use_dora"), "it is a DoRA adapter (use_dora)"),
        (config.get("bias", "none") == "none" and not config.get("lora_bias"), "it trains biases (bias)"),
        (
            not (isinstance(start, str) and start.lower().startswith(_REFUSED_STARTS)),
            f"it changes the base model at its start (init_lora_weights: {start})",
        ),
        # They would be passed over in silence, and every update scaled wrongly.
        (not config.get("rank_pattern"), "layers have ranks of their own (rank_pattern)"),
        (not config.get("alpha_pattern"), "layers have alphas of their own (alpha_pattern)"),
        (not config.get("layer_replication"), "it repeats layers of the base model (layer_replication)"),
    )
    return [problem for holds, problem in rules if not holds]


def _of_tensors(adapter: Adapter) -> list[str]:
    problems = []
    for name, shape in sorted(adapter.shapes.items()):
        found = _LORA_WEIGHT.fullmatch(name)
        if found is None:
            if not _BASE_WEIGHT.search(name):
                problems.append(f"its tensor {name} is no LoRA weight")
            continue
        layer = found["layer"].rpartition(".")[2]
        if layer in _VOCABULARY_LAYERS:
            problems += _of_vocabulary_layer(adapter, layer, found, shape)
        elif layer not in _LAYERS:
            problems.append(f"it changes the layer {layer}, for which it expects no adapter")
    return problems


def _of_vocabulary_layer(adapter: Adapter, layer: str, found: re.Match[str], shape: tuple[int, ...]) -> list[str]:
    if adapter.model_type not in FAMILIES_WITH_VOCABULARY_LORA:
        return [f"it changes {layer}, which an adapter of a {adapter.model_type} model may not"]
    # The sides that are as long as the vocabulary: A of the embedding, which it reads, and B of the head.
    rows = shape[1] if found["table"] == "A" else shape[0] if (layer, found["side"]) == ("lm_head", "B") else None
    if rows is not None and rows != adapter.base_vocabulary:
        return [f"its {layer} has {rows} rows, the base model {adapter.base_vocabulary}"]
    return []

"""Adapters of each method with random weights, and the probabilities that PEFT gives with them."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunemill_api.training import Adapter, AdapterMethod, Ia3

from tunemill_dev.serving.training import NO_TOKENS, STEPS, Trained

_SEED_TOKENS = 24


@dataclass(frozen=True)
class Variant:
    """An adapter.

    Attributes:
        name: what it is.
        folder: its files.
    """

    name: str
    folder: Path


@dataclass(frozen=True)
class Reference:
    """What PEFT makes of an adapter.

    Attributes:
        prompt: the token ids of a prompt.
        tokens: the token ids after it.
        probabilities: the logarithms of the probabilities of `tokens`.
    """

    prompt: list[int]
    tokens: list[int]
    probabilities: list[float]


def variants(family: Trained, folder: Path) -> list[Variant]:
    """Write an adapter of each method that Tunemill trains and of the others that PEFT has, with random weights."""
    import torch
    from peft import get_peft_model

    made, base = [], _base(family)
    for name, config in _configurations(base).items():
        torch.manual_seed(1)
        model = get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if weight.requires_grad:
                    # The second matrix of an update starts at zero, and a factor at one.
                    weight.add_(torch.randn_like(weight) * (0.3 if "ia3" in key else 0.1))
        model.save_pretrained(folder / name, save_embedding_layers=False)
        made.append(Variant(name, folder / name))
    return made


def greedy(family: Trained, variant: Variant) -> Reference:
    """Return the probabilities of some tokens after a prompt, by PEFT."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(_base(family), variant.folder).eval()
    ids = [4 + (7 * at) % 200 for at in range(_SEED_TOKENS)]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    half = _SEED_TOKENS // 2
    return Reference(ids[:half], ids[half:], [float(logits[at - 1, ids[at]]) for at in range(half, _SEED_TOKENS)])


def _base(family: Trained) -> Any:  # noqa: ANN401 - transformers ships no types
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(family.base, dtype=torch.float32, attn_implementation="eager")


def _configurations(base: Any) -> dict[str, Any]:  # noqa: ANN401
    from peft import AdaLoraConfig, IA3Config, LoraConfig
    from tunemill_trainer.learn.adapter import adapter_config

    # Tunemill's configuration of IA3 has the names of all layers that get an adapter.
    ia3 = Ia3(target_modules=["all-linear"], feedforward_modules=[])
    every = adapter_config(Adapter(method=AdapterMethod.IA3, ia3=ia3), base, NO_TOKENS, STEPS)
    assert every is not None
    linear = sorted(every.target_modules)
    task = {"task_type": "CAUSAL_LM"}
    lora = {"r": 8, "lora_alpha": 16, "target_modules": linear, **task}
    head = [*linear, "lm_head"]
    table = base.get_input_embeddings()
    embedding = next(name for name, module in base.named_modules() if module is table).rpartition(".")[2]
    return {
        "LoRA": LoraConfig(**lora),
        "rsLoRA": LoraConfig(**lora, use_rslora=True),
        "LoRA with added tokens": LoraConfig(**lora, trainable_token_indices={embedding: [5]}),
        "LoRA of the output layer": LoraConfig(**(lora | {"target_modules": head})),
        "LoRA with a rank pattern": LoraConfig(**lora, rank_pattern={linear[0]: 4}),
        "LoRA with an alpha pattern": LoraConfig(**lora, alpha_pattern={linear[0]: 4}),
        "DoRA": LoraConfig(**lora, use_dora=True),
        "LoRA with a full layer": LoraConfig(**lora, modules_to_save=["lm_head"]),
        "IA3": IA3Config(target_modules=linear, feedforward_modules=[], **task),
        "AdaLoRA": AdaLoraConfig(
            init_r=8, target_r=4, lora_alpha=16, target_modules=linear, total_step=10, tinit=1, tfinal=1, **task
        ),
    }

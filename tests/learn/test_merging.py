"""Whether an adapter is merged for decoding."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
from tunemill_trainer.learn import merging

SAMPLES = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [5, 8, 9, 7, 9], [3]]


def tuned(dtype: torch.dtype) -> Any:
    """A base model with an adapter that changes it, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", merging.BOUNDS)
def test_an_equivalent_merged_model_is_used_for_decoding(dtype: torch.dtype):
    """In every number format the adapter is removed, and the logits differ by rounding only."""
    model, how = merging.for_decoding(lambda: tuned(dtype), SAMPLES, quantised=False)
    assert not isinstance(model, PeftModel)
    assert how.startswith("merged: mean difference of log-probabilities")
    ids = torch.tensor([SAMPLES[0]])
    with torch.inference_mode():
        expected, found = tuned(torch.float32)(input_ids=ids).logits, model(input_ids=ids).logits
    rounding = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.08}
    assert float((found - expected).abs().max()) < rounding[dtype]


def test_a_differing_merged_model_is_not_used_for_decoding(monkeypatch: pytest.MonkeyPatch):
    """The adapter is loaded again, since merging has changed the weights of the first one."""
    calls = 0

    def load() -> Any:
        nonlocal calls
        calls += 1
        return tuned(torch.float32)

    monkeypatch.setattr(merging, "merge", lambda model: model.unload())
    model, how = merging.for_decoding(load, SAMPLES, quantised=False)
    assert isinstance(model, PeftModel)
    assert calls == 2
    assert how.startswith("not merged: mean difference of log-probabilities")
    ids = torch.tensor([SAMPLES[0]])
    assert torch.equal(model(input_ids=ids).logits, tuned(torch.float32)(input_ids=ids).logits)


def test_quantized_base_models_and_full_models_are_not_merged():
    """There is nothing to merge, or no weights to merge into."""
    model, how = merging.for_decoding(lambda: tuned(torch.float32), SAMPLES, quantised=True)
    assert isinstance(model, PeftModel)
    assert how == "not merged: the base model is quantized"
    _, how = merging.for_decoding(lambda: tuned(torch.float32).unload(), SAMPLES, quantised=False)
    assert how == "full model"

"""GPU costs of a step and of a decoded token, as limits; `make bench-trainer` compares the costs."""

import pytest
from tunemill_dev.bench import counters

KERNELS = {
    "gemma2": (927, 66.3),
    "gemma3_text": (621, 69.8),
    "llama": (477, 49.1),
    "mistral": (477, 50.4),
    "phi": (393, 44),
    "qwen2": (477, 49.1),
    "qwen3": (549, 55.1),
}
"""Of a step of eight rows with two layers and the optimizer, and of a token of four that are decoded at once.

Soft-capped attention (Gemma 2) is made of several operators for each row here; on a GPU it is one for all rows.
"""
SLACK = 1.02
"""For what another version of PyTorch does otherwise."""


@pytest.mark.parametrize("family", counters.FAMILIES)
def test_the_cost_of_a_step_does_not_increase(family: str):
    """A step is one pass without padding and host syncs, with a limited number of kernel launches."""
    found = counters.of_training(family, ("ours",))["ours"]
    assert found["passes_per_step"] == 1
    assert found["padding"] == 0
    assert found["syncs_per_step"] == 0
    # Three numbers of 8 bytes a token, fewer where the next token is not learnt.
    assert found["bytes_copied_per_token"] <= 21
    assert found["kernels_per_step"] <= SLACK * KERNELS[family][0]


@pytest.mark.parametrize("family", counters.FAMILIES)
def test_the_cost_of_a_decoded_token_does_not_increase(family: str):
    """Limited kernel launches and host syncs during generation."""
    found = counters.of_decoding(family)
    assert found["kernels_per_token"] <= SLACK * KERNELS[family][1]
    assert found["syncs_per_token"] <= 1.1


def test_the_counters_work_for_other_training_loops():
    """They detect padding, host syncs and additional passes."""
    found = counters.of_training("qwen3")
    assert found["trl_defaults"]["padding"] > 0.3
    assert found["trl_defaults"]["syncs_per_step"] > 0
    assert found["trl_defaults"]["bytes_copied_per_token"] > found["ours"]["bytes_copied_per_token"]
    assert found["tutorial"]["passes_per_step"] == 4
    assert found["tutorial"]["kernels_per_1000_tokens"] > found["ours"]["kernels_per_1000_tokens"]

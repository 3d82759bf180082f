"""What a step and a decoded token ask of a GPU does not grow unseen; `make bench-trainer` shows it beside others."""

import pytest
from tunemill_dev.bench import counters

KERNELS = {
    "gemma2": 972,
    "gemma3_text": 650,
    "llama": 492,
    "mistral": 492,
    "phi": 418,
    "qwen2": 492,
    "qwen3": 564,
}
"""Of a step of eight rows, two layers and the optimizer."""


@pytest.mark.parametrize("family", counters.FAMILIES)
def test_a_step_costs_no_more_than_it_did(family: str):
    """Proves that a step is one pass without padding, that the host waits for nothing, and how much is launched."""
    found = counters.of_training(family, ("ours",))["ours"]
    print(family, found, counters.of_decoding(family))
    assert found["passes_per_step"] == 1
    assert found["padding"] == 0
    assert found["syncs_per_step"] == 0
    # Three numbers of 8 bytes a token, fewer where the next token is not learnt.
    assert found["bytes_copied_per_token"] <= 21
    assert found["kernels_per_step"] <= KERNELS[family]

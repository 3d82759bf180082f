"""The learning rate for Auto."""

import hashlib

import pytest
from tunemill_api import keys
from tunemill_api.training import AdapterMethod, Training
from tunemill_trainer.bases.learning_rates import RATES, SIZES, learning_rate
from tunemill_trainer.learn.callbacks import rate_to_try

AUTO = Training()
METHODS = list(AdapterMethod)


@pytest.mark.parametrize(
    ("method", "weights", "expected"),
    [
        ("LoRA", 600_000_000, "2e-4"),
        ("LoRA", 3_212_749_824, "1e-4"),
        ("LoRA", 70_553_706_496, "5e-5"),
        ("Full", 268_098_176, "5e-5"),
        ("Full", 1_543_714_304, "2e-5"),
        ("Full", 8_030_261_248, "1e-5"),
        ("AdaLoRA", 8_030_261_248, "5e-4"),
        ("IA3", 8_030_261_248, "5e-3"),
    ],
)
def test_the_rate_depends_on_method_and_size(method: str, weights: int, expected: str) -> None:
    """The number of weights of real models: Qwen3 0.6B, Llama 3.2 3B, Llama 3.3 70B, Gemma 3 270M and others."""
    assert learning_rate(AUTO, AdapterMethod(method), weights) == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_rate_of_the_user_takes_precedence(method: AdapterMethod) -> None:
    """It is used unchanged."""
    assert learning_rate(Training(learning_rate="3.0e-4"), method, 8_000_000_000) == "3.0e-4"


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_model_never_gets_a_higher_rate(method: AdapterMethod) -> None:
    """Every rate is valid in a spec, and every size has one."""
    assert len(RATES[method]) == len(SIZES) + 1
    rates = [float(Training(learning_rate=rate).learning_rate) for rate in RATES[method]]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("position", range(len(SIZES) + 1))
def test_full_fine_tuning_gets_about_a_tenth_of_the_rate_of_lora(position: int) -> None:
    """Small models get a little more."""
    ratio = float(RATES[AdapterMethod.LORA][position]) / float(RATES[AdapterMethod.FULL][position])
    assert 4 <= ratio <= 10


@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_run_with_auto_gets_a_lower_suggestion(method: AdapterMethod) -> None:
    """The suggestion is a value for the spec."""
    for rate in RATES[method]:
        suggested = Training(learning_rate=rate_to_try(float(rate), 0.0)).learning_rate
        assert 0 < float(suggested) < float(rate)


def test_a_changed_table_requires_a_new_recipe_of_train() -> None:
    """Auto is part of a key, the table is not: an output with another rate must not be reused."""
    table = repr([SIZES, [*RATES.items()]]).encode()
    expected = "14e03a34"
    assert (hashlib.sha256(table).hexdigest()[:8], keys.RECIPES["train"]) == (expected, 2)

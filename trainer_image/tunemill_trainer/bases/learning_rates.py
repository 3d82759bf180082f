"""What spec.training.learningRate Auto stands for: a rate by method and by the base model's number of weights.

Sources:

- LoRA and Full, 3 billion weights: PEFT's comparison of methods trains Llama 3.2 3B with 1e-4 (rank 32, alpha 64) and
  1e-5 (huggingface/peft, method_comparison/MetaMathQA).
- A factor of ten between LoRA and Full, at every rank: Schulman et al., "LoRA Without Regret", 2025. Its optimum for
  LoRA with alpha 32, in the formula of tinker-cookbook, is 5e-4 at width 2,000 (1.5 billion weights) and falls with the
  width, for Llama to 2.9e-4 at 4,096 (8 billion). Twice the alpha is the same as twice the rate, so that this is 2.5e-4
  and 1.4e-4 for alpha 64, the default of spec.adapter.
- Half the rate from 33 billion weights on: the hyperparameters of QLoRA, arXiv:2305.14314. It quantizes the base
  model, and Unsloth's guide also gives one rate for LoRA and QLoRA (2e-4, with alpha 16 or 32). So there is no
  separate rate for quantized models.
- Full: TRL's default is 2e-5; Google's guide to FunctionGemma trains its 0.3 billion weights with 5e-5.
- AdaLoRA: 5e-4 to 2e-3 for models below one billion weights, arXiv:2303.10512, appendix. Five times LoRA's rate.
- IA3: 3e-3 for 3 and 11 billion weights (arXiv:2205.05638) and 5e-3 in PEFT's comparison. No dependence on size.
"""

from collections.abc import Mapping
from typing import Final

from tunemill_api.scalars import AUTO
from tunemill_api.training import AdapterMethod, Training

SIZES: Final = (1_000_000_000, 3_000_000_000, 32_000_000_000)
"""Numbers of weights at which the rate changes: the columns of `RATES` are below each of them, and from the last on."""
RATES: Final[Mapping[AdapterMethod, tuple[str, ...]]] = {
    AdapterMethod.LORA: ("2e-4", "2e-4", "1e-4", "5e-5"),
    AdapterMethod.ADALORA: ("1e-3", "1e-3", "5e-4", "2e-4"),
    AdapterMethod.IA3: ("5e-3", "5e-3", "5e-3", "5e-3"),
    AdapterMethod.FULL: ("5e-5", "2e-5", "1e-5", "5e-6"),
}
"""Peak learning rates for the defaults of spec.adapter. A change needs a new recipe in `tunemill_api.keys`."""


def learning_rate(training: Training, method: AdapterMethod, weights: int) -> str:
    """Return the peak learning rate: that of spec.training, or for Auto that of the table.

    Args:
        training: spec.training.
        method: spec.adapter.method.
        weights: number of weights of the base model.
    """
    if training.learning_rate != AUTO:
        return training.learning_rate
    return RATES[method][sum(weights >= size for size in SIZES)]

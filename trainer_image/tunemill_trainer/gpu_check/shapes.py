"""The models of the GPU check: configurations of real models, with random weights.

The numbers are from each model's config.json on the Hub. `small` reduces a shape, with the same architecture, to a size
that a CPU trains in seconds.
"""

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Shape:
    """A model.

    Attributes:
        name: the display name.
        config: the content of config.json.
    """

    name: str
    config: dict[str, Any]

    def small(self) -> "Shape":
        """Return the same architecture with two narrow layers."""
        less = {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
        }
        if "query_pre_attn_scalar" in self.config:
            less["query_pre_attn_scalar"] = 16
        return Shape(f"small {self.config['model_type']}", {**self.config, **less})


_QWEN3: Final[dict[str, Any]] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
}

SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape
    for shape in (
        Shape(
            "functiongemma-270m",
            {
                "model_type": "gemma3_text",
                "architectures": ["Gemma3ForCausalLM"],
                "vocab_size": 262_144,
                "hidden_size": 640,
                "intermediate_size": 2048,
                "num_hidden_layers": 18,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 512,
                "max_position_embeddings": 32_768,
                "tie_word_embeddings": True,
            },
        ),
        Shape("qwen3-0.6b", {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072}),
        Shape("qwen3-1.7b", {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144}),
        Shape(
            "gemma-2-2b",
            {
                "model_type": "gemma2",
                "architectures": ["Gemma2ForCausalLM"],
                "vocab_size": 256_000,
                "hidden_size": 2304,
                "intermediate_size": 9216,
                "num_hidden_layers": 26,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 4096,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "max_position_embeddings": 8192,
                "tie_word_embeddings": True,
            },
        ),
        Shape(
            "llama-3.1-8b",
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "vocab_size": 128_256,
                "hidden_size": 4096,
                "intermediate_size": 14_336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 131_072,
                "tie_word_embeddings": False,
            },
        ),
    )
}
"""The models by name."""

MEDIAN, SPREAD, SHORTEST, LONGEST = 700, 0.6, 32, 2048
"""The lengths of the rows in tokens, as in the agents-course data: a lognormal distribution."""
SUPERVISED = 0.25
"""The fraction of supervised tokens, which are at the end of each row."""

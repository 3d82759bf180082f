"""The memory estimate compared with the bytes that real runs of small models allocate, on the CPU."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from learn.tasks import CPU
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoTokenizer, Gemma3TextConfig, GPT2Config, LlamaConfig, TrainerCallback
from tunemill_api.finetune import FineTuneSpec
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.learn import memory_settings, models, sft
from tunemill_trainer.learn.adapter import adapter_config
from tunemill_trainer.learn.memory import estimate
from tunemill_trainer.learn.memory_plan import Lengths, MemoryMode, Need, UnknownMemoryError
from tunemill_trainer.learn.plan import Plan
from tunemill_trainer.learn.trainer import MicroBatchTrainer
from tunemill_trainer.prepared import IGNORED, Tokens

ROWS, LENGTH = 4, 256
LENGTHS = Lengths(longest=LENGTH, pass_tokens=ROWS * LENGTH, answer=20, supervised=1 / LENGTH)


@dataclass
class Taken:
    """Bytes of a real training, by purpose."""

    weights: int = 0
    trained: int = 0
    gradients: int = 0
    optimizer: int = 0
    passes: list[int] = field(default_factory=list)
    """The most that was allocated at once in each step, besides what was there before."""


class Watch(TrainerCallback):
    """Counts tensors when they exist."""

    def __init__(self, taken: Taken) -> None:
        self._taken = taken

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Count the gradients."""
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._taken.gradients = sum(grad.nbytes for grad in grads)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        """Count trained parameters and the state of the optimizer."""
        moments = [kept for state in given["optimizer"].state.values() for kept in state.values()]
        self._taken.optimizer = sum(moment.nbytes for moment in moments)
        self._taken.trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)


def most_allocated(profiled: profile) -> int:
    """The peak of the CPU allocator in bytes."""
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Taken]:
    """The bytes of all steps of a training."""
    found, step = Taken(), MicroBatchTrainer.training_step

    def profiled(trainer: Any, *given: Any, **named: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            loss = step(trainer, *given, **named)
        found.passes.append(most_allocated(watched))
        return loss

    monkeypatch.setattr(MicroBatchTrainer, "training_step", profiled)
    return found


def a_spec(method: str, precision: str, quantization: str) -> FineTuneSpec:
    """Return a spec; the fields that it leaves out do not affect memory."""
    return FineTuneSpec.model_validate(
        {
            "baseModel": {"id": "acme/tiny", "quantization": quantization},
            "dataset": {"uri": "s3://data/rows.jsonl"},
            "publish": {"repository": "acme/tuned"},
            "adapter": {"method": method},
            "training": {"precision": precision, "batchSize": ROWS, "maxSteps": 2, "learningRate": "1e-4"},
        }
    )


def train(base: Path, folder: Path, spec: FineTuneSpec, taken: Taken) -> None:
    """Train two steps of one pass each on rows of the same length, whose last token is supervised."""
    dtype = torch.bfloat16 if spec.training.precision == "BF16" else torch.float32
    weights = torch.float32 if spec.adapter.method == "Full" else dtype
    model = models.load_base(base, CPU, weights, spec.base_model.quantization)
    taken.weights = model.get_memory_footprint()
    ids = [[(at * 7 + row) % 500 + 16 for at in range(LENGTH)] for row in range(ROWS)]
    labels = [[IGNORED] * (LENGTH - 1) + row[-1:] for row in ids]
    rows = datasets.Dataset.from_list(
        [{"input_ids": row, "labels": says, "length": LENGTH} for row, says in zip(ids, labels, strict=True)]
    )
    run = sft.Run(spec.training, Plan(2, 1, ROWS * LENGTH), CPU, dtype, folder)
    config = adapter_config(spec.adapter, model, no_new_tokens(base), 10)
    sft.train(run, model, config, AutoTokenizer.from_pretrained(base), rows, [Watch(taken)], None)


def no_new_tokens(base: Path) -> Tokens:
    """The unchanged vocabulary."""
    return Tokens("Reuse", (), (1,), 0, AutoConfig.from_pretrained(base).vocab_size)


def within(measured: int, estimated: int, share: float) -> bool:
    """Return whether an estimate is within a share of the measurement."""
    return abs(estimated - measured) <= share * measured


@pytest.mark.parametrize(
    ("kind", "method", "precision", "quantization"),
    [
        ("qwen3", "LoRA", "FP32", "None"),
        ("qwen3", "Full", "FP32", "None"),
        ("qwen3", "LoRA", "BF16", "None"),
        ("llama", "AdaLoRA", "FP32", "None"),
        ("llama", "LoRA", "FP32", "Int8"),
        ("gemma3", "IA3", "FP32", "None"),
        ("gemma2", "LoRA", "FP32", "NF4"),
    ],
)
def test_each_part_of_the_estimate_matches_a_run(
    tmp_path: Path, taken: Taken, kind: str, method: str, precision: str, quantization: str
):
    """Weights, trained parameters, gradients, optimizer state and the peak of a pass, within 20 %."""
    base, spec = cached_base(kind, steps=0), a_spec(method, precision, quantization)
    train(base, tmp_path, spec, taken)
    need = estimate(AutoConfig.from_pretrained(base), spec, 0, LENGTHS, fused=False).train[0]
    assert within(taken.weights, need.parts["weights"], 0.05)
    assert need.parts["gradients"] == taken.gradients
    assert need.parts["trained parameters"] == (0 if method == "Full" else taken.trained)
    moments = need.parts["optimizer"] * (8 / 20 if method == "AdaLoRA" else 1)
    assert within(taken.optimizer, int(moments), 0.01)
    assert within(max(taken.passes), of_a_pass(need), 0.2)


def of_a_pass(need: Need) -> int:
    """The bytes of a forward and a backward pass only."""
    return sum(need.parts.get(name, 0) for name in ("activations", "autocast copies", "backward pass", "output head"))


def test_activation_checkpointing_is_estimated(tmp_path: Path, taken: Taken, monkeypatch: pytest.MonkeyPatch):
    """Each layer keeps its input, and one layer at a time all activations."""
    base, spec = cached_base("qwen3", steps=0), a_spec("LoRA", "FP32", "None")
    monkeypatch.setattr(
        sft, "MemorySettings", partial(memory_settings.MemorySettings, checkpointing=memory_settings.Checkpointing.FULL)
    )
    train(base, tmp_path, spec, taken)
    needs = estimate(AutoConfig.from_pretrained(base), spec, 0, LENGTHS, fused=False).train
    assert [need.mode for need in needs] == [*MemoryMode]
    assert within(max(taken.passes), of_a_pass(needs[2]), 0.2)


LLAMA_8B = LlamaConfig(
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)


def test_the_estimate_of_a_large_model_matches_known_values():
    """Llama 3.1 8B has 8.03 billion weights, and its cache needs 128 KiB per token."""
    lengths = Lengths(2048, 16_384, 100, 0.25)
    found = {
        (method, quantization): estimate(LLAMA_8B, a_spec(method, "BF16", quantization), 0, lengths)
        for method, quantization in (("LoRA", "None"), ("LoRA", "NF4"), ("LoRA", "Int8"), ("Full", "None"))
    }
    plain = found["LoRA", "None"]
    assert plain.train[0].parts["weights"] == 2 * 8_030_261_248
    # Two matrices of rank 16 for each of the seven linear layers.
    assert plain.train[0].parts["trained parameters"] == 4 * 41_943_040
    assert plain.evaluate[-1].parts["key-value cache"] == 2148 * (128 << 10)
    assert found["LoRA", "NF4"].least_mib < found["LoRA", "Int8"].least_mib < plain.least_mib
    full = found["Full", "None"].train[0].parts
    assert (full["weights"], full["gradients"], full["optimizer"]) == tuple(n * 8_030_261_248 for n in (4, 4, 8))
    for needs in (made.train for made in found.values()):
        assert [need.mode for need in needs[:4]] == [*MemoryMode]
        assert [need.mib for need in needs[:4]] == sorted((need.mib for need in needs[:4]), reverse=True)
    assert [need.compact for need in found["Full", "None"].train] == [False] * 4 + [True] * 4
    compact = found["Full", "None"].train[-1].parts
    assert compact["weights"] + compact["gradients"] + compact["optimizer"] == pytest.approx(
        6 * 8_030_261_248, rel=0.01
    )
    assert LLAMA_8B.num_hidden_layers == 32, "the configuration is not changed"


def test_rows_of_new_tokens_are_counted():
    """Each token has one row, and a second one if the output head has separate weights."""
    none, some = (
        estimate(LLAMA_8B, a_spec("LoRA", "BF16", "None"), added, LENGTHS).train[0].parts["trained parameters"]
        for added in (0, 3)
    )
    assert some - none == 4 * 3 * 2 * 4096


def test_a_model_that_cannot_be_estimated_is_reported():
    """Unknown code or a malicious configuration ends only the estimate."""
    many = LlamaConfig(num_hidden_layers=10**6)
    for config in (many, GPT2Config(n_layer=2)):
        with pytest.raises(UnknownMemoryError):
            estimate(config, a_spec("LoRA", "BF16", "None"), 0, LENGTHS)


def test_layers_with_a_sliding_window_cache_at_most_their_window() -> None:
    """The key-value cache of evaluate is counted layer by layer, in the number format of the computation."""
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        sliding_window=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    lengths = Lengths(longest=200, pass_tokens=400, answer=56, supervised=0.5)
    for method, precision, size in (("LoRA", "BF16", 2), ("Full", "BF16", 2), ("LoRA", "FP32", 4)):
        (need,) = estimate(config, a_spec(method, precision, "None"), 0, lengths).evaluate
        assert need.parts["key-value cache"] == 2 * 32 * size * (64 + 64 + 256)

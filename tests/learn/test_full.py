"""Full fine-tuning: weight format, optimizer, checkpoints, and memory of later stages."""

import gc
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from learn.tasks import CPU, Task, a_task, adapter
from torch import nn
from transformers import AutoTokenizer
from tunemill_api.failures import Reason
from tunemill_api.training import Training
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import models, sft
from tunemill_trainer.learn.adapter import adapter_config, save_trained
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.full import (
    COMPACT,
    WIDE,
    StochasticAdamW8bit,
    count_weights,
    format_of_checkpoint,
    round_stochastically,
    weight_format,
)
from tunemill_trainer.learn.models import ModelLoader
from tunemill_trainer.learn.plan import plan
from tunemill_trainer.learn.trainer import TRAINABLE_FILE, load_trainable, save_trainable, trainable_files
from tunemill_trainer.prepared import BaseModel

H100 = Device("cuda", "NVIDIA H100 80GB", 81559 << 20)
RATE = 1e-5
"""A usual learning rate for a whole model."""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base model with random weights."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


@pytest.mark.parametrize(
    ("weights", "dtype", "expected"),
    [
        (1_700_000_000, torch.bfloat16, WIDE),
        (4_000_000_000, torch.bfloat16, WIDE),
        (8_030_000_000, torch.bfloat16, COMPACT),
        (12_000_000_000, torch.bfloat16, COMPACT),
        (5_000_000_000, torch.float32, WIDE),
    ],
)
def test_an_8b_model_fits_on_an_80_gb_gpu(weights: int, dtype: torch.dtype, expected: object):
    """Weights are FP32 if there is room, and BF16 with an 8-bit optimizer otherwise."""
    assert weight_format(weights, H100, dtype) == expected


@pytest.mark.parametrize(("weights", "dtype"), [(15_000_000_000, torch.bfloat16), (8_030_000_000, torch.float32)])
def test_a_too_large_model_is_refused_before_it_is_loaded(weights: int, dtype: torch.dtype):
    """The message has the needed and available MiB; only BF16 has a compact format."""
    needed = weights * (6 if dtype is torch.bfloat16 else 16) >> 20
    with pytest.raises(StageError, match=rf"needs at least {needed} MiB .*has 81559 MiB") as error:
        weight_format(weights, H100, dtype, "Set spec.adapter.method to LoRA.")
    assert error.value.reason is Reason.CUDA_OUT_OF_MEMORY
    assert "LoRA" in error.value.failure.remedy


def test_the_weights_of_a_model_are_counted_without_loading_it(raw: Task):
    """From the headers of the files; tied layers count once."""
    model = models.load_base(raw.base, CPU, torch.float32)
    assert count_weights(raw.base) == sum(parameter.numel() for parameter in model.parameters())
    assert weight_format(10**12, CPU, torch.bfloat16) == WIDE


def test_stochastic_rounding_keeps_small_updates_on_average():
    """Without bias; values representable in BF16 stay, and results are neighbours of the exact value."""
    torch.manual_seed(0)
    exact = torch.full((1 << 18,), 0.05) + torch.linspace(-1e-5, 1e-5, 1 << 18)
    rounded = torch.empty_like(exact, dtype=torch.bfloat16)
    round_stochastically(exact.clone(), rounded)
    # One unit of BF16 is 2.4e-4 here: the mean of so many has an error of 3e-7 by chance.
    assert float((rounded.double() - exact.double()).mean()) == pytest.approx(0, abs=3e-6)
    assert len(rounded.unique()) == 2
    special = torch.tensor([1.0, -2.5, 0.0, float("inf"), float("-inf"), float("nan")])
    kept = torch.empty_like(special, dtype=torch.bfloat16)
    round_stochastically(special.clone(), kept)
    assert torch.equal(kept.float().nan_to_num(7), special.nan_to_num(7))
    # Away from zero on both sides, by chance.
    signs = torch.tensor([-0.0501] * 4096)
    round_stochastically(signs.clone(), negative := torch.empty(4096, dtype=torch.bfloat16))
    assert float(negative.double().mean()) == pytest.approx(-0.0501, abs=2e-5)


def moved(optimizer_of: Any, dtype: torch.dtype) -> float:
    """The distance of weights of 0.05 after 100 steps at a usual rate."""
    torch.manual_seed(0)
    weights = nn.Parameter(torch.full((64, 128), 0.05, dtype=dtype))
    optimizer = optimizer_of([weights])
    for _ in range(100):
        weights.grad = torch.ones_like(weights)
        optimizer.step()
        assert weights.dtype is dtype
        assert weights.grad.dtype is dtype
    start = float(torch.tensor(0.05, dtype=dtype))
    return start - float(weights.detach().double().mean())


def test_bf16_weights_are_updated_only_with_stochastic_rounding():
    """AdamW's updates of 1e-5 are lost to rounding."""
    exact = moved(lambda weights: torch.optim.AdamW(weights, lr=RATE, weight_decay=0), torch.float32)
    lost = moved(lambda weights: torch.optim.AdamW(weights, lr=RATE, weight_decay=0), torch.bfloat16)
    kept = moved(lambda weights: StochasticAdamW8bit(weights, lr=RATE, weight_decay=0), torch.bfloat16)
    assert exact == pytest.approx(100 * RATE, rel=1e-2)
    assert lost == 0
    assert kept == pytest.approx(exact, rel=0.1)


COMPACT_RUN: dict[str, Any] = {"dtype": torch.bfloat16, "weights": COMPACT}


def test_a_compact_run_has_similar_losses_with_a_third_of_the_state(raw: Task, tmp_path: Path):
    """All stored tensors have the compact format and size."""
    settings: dict[str, Any] = {
        "count": 24,
        "batchSize": 4,
        "maxSteps": 8,
        "learningRate": "3e-3",
        "checkpoint": {"everySteps": 8},
    }
    wide = raw.train(tmp_path / "wide", adapter("Full"), raw.model(), **settings)
    compact = raw.train(
        tmp_path / "compact", adapter("Full"), raw.model().to(torch.bfloat16), **settings, **COMPACT_RUN
    )
    assert wide.history[-1]["loss"] < 0.8 * wide.history[0]["loss"]
    assert compact.history[-1]["loss"] == pytest.approx(wide.history[-1]["loss"], rel=0.1)
    assert {parameter.dtype for parameter in compact.model.parameters()} == {torch.bfloat16}
    folders = [tmp_path / name / "checkpoint-8" for name in ("compact", "wide")]
    compact_size, wide_size = (sum(path.stat().st_size for path in folder.iterdir()) for folder in folders)
    assert compact_size < 0.45 * wide_size
    assert [format_of_checkpoint(folder / TRAINABLE_FILE) for folder in folders] == [COMPACT, WIDE]


def test_a_compact_run_resumes_bit_for_bit(raw: Task, tmp_path: Path):
    """The 8-bit moments and the random state of the rounding are in the checkpoint."""
    settings: dict[str, Any] = {
        "count": 16,
        "batchSize": 4,
        "maxSteps": 4,
        "checkpoint": {"everySteps": 2, "keep": 4},
        **COMPACT_RUN,
    }
    undisturbed = raw.train(tmp_path / "run", adapter("Full"), raw.model().to(torch.bfloat16), **settings)
    resumed = raw.train(
        tmp_path / "again",
        adapter("Full"),
        raw.model().to(torch.bfloat16),
        resume_from=tmp_path / "run" / "checkpoint-2",
        **settings,
    )
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in undisturbed.history]
    for one, other in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def saved(task: Task, method: str, folder: Path) -> Path:
    """The files that train saves with a method."""
    result = task.train(folder / "run", adapter(method), task.model(), count=16, maxSteps=1)
    save_trained(result.model, BaseModel("acme/tiny", "1" * 40), task.tokenizer, folder / "trained", torch.float32)
    return folder / "trained"


@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_base_and_tuned_model_are_never_in_memory_together(raw: Task, tmp_path: Path, method: str):
    """A full model replaces the base model, and an adapter uses the loaded base model."""
    trained = saved(raw, method, tmp_path)
    model = ModelLoader(raw.base, CPU, torch.float32)
    layer = weakref.ref(model.base().model.layers[0].mlp.up_proj)
    alive: list[bool] = []
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        real = models.load_base

        def load(*arguments: Any) -> Any:
            alive.append(layer() is not None)
            return real(*arguments)

        patched.setattr(models, "load_base", load)
        tuned = model.tuned(trained, raw.tokens)
    assert alive == ([False] if method == "Full" else [])
    assert not tuned.training
    tuned = None
    model.release()
    gc.collect()
    assert layer() is None


def test_a_large_model_is_saved_in_shards_and_the_best_checkpoint_stays_complete(
    raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Shards fit into host memory, and files of a checkpoint never change."""
    monkeypatch.setattr("tunemill_trainer.learn.trainer._PIECE_BYTES", 200_000)
    model, path = raw.model(), tmp_path / "best.safetensors"
    save_trainable(model, path)
    files = trainable_files(path)
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < largest + 200_000
    (tmp_path / "checkpoint").mkdir()
    for file in files:
        os.link(file, tmp_path / "checkpoint" / file.name)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    save_trainable(model, path)
    load_trainable(model, tmp_path / "checkpoint" / path.name)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    load_trainable(model, path)
    assert all(torch.equal(parameter, before[name] + 1) for name, parameter in model.named_parameters())


def test_too_little_disk_for_two_checkpoints_is_reported_before_the_first_step(
    raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The message has the needed and available MiB."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=10 << 20))
    weights = sum(parameter.numel() for parameter in raw.model().parameters())
    with pytest.raises(StageError, match=rf"10 MiB free: expected at least {24 * weights >> 20} MiB") as error:
        raw.train(tmp_path, adapter("Full"), raw.model(), count=16, maxSteps=1)
    assert error.value.reason is Reason.DISK_FULL
    assert "ephemeral-storage" in error.value.failure.remedy


def test_only_one_checkpoint_is_kept_on_disk(raw: Task, tmp_path: Path):
    """The newest one, whatever the workspace keeps."""
    settings = Training.model_validate(
        {"batchSize": 16, "maxSteps": 3, "learningRate": "1e-4", "checkpoint": {"everySteps": 1, "keep": 9}}
    )
    run = sft.Run(settings, plan(settings, 16), CPU, torch.float32, tmp_path)
    model = raw.model()
    tokenizer = AutoTokenizer.from_pretrained(raw.tokenizer)
    config = adapter_config(adapter("LoRA"), model, raw.tokens, 3)
    sft.train(run, model, config, tokenizer, raw.rows(16), [], None)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]

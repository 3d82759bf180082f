"""Every method, and every kind of base: from a model that cannot call to one that can, saved and loaded the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learn.tasks import Task, a_task, adapter
from tunemill_api.finetune import Adapter, Quantization
from tunemill_trainer.learn import models
from tunemill_trainer.learn.adapter import save_trained
from tunemill_trainer.prepared import BaseModel


@pytest.fixture(scope="module")
def skilled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Task]:
    """Bases that can read and copy but have never seen a call: without the tags, and with them."""
    made: dict[bool, Task] = {}

    def task(extend: bool) -> Task:
        if extend not in made:
            folder = tmp_path_factory.mktemp("extended" if extend else "reused")
            made[extend] = a_task(folder, "gemma2" if extend else "qwen3", extend=extend, steps=220)
        return made[extend]

    return task


LEARNING = [
    pytest.param(adapter("AdaLoRA"), Quantization.NONE, True, {"maxSteps": 90, "learningRate": "3e-2"}, id="AdaLoRA"),
    pytest.param(adapter("Full"), Quantization.NONE, True, {"maxSteps": 80, "learningRate": "3e-3"}, id="Full"),
    pytest.param(adapter("LoRA"), Quantization.NF4, False, {"maxSteps": 120, "learningRate": "1e-2"}, id="NF4"),
    pytest.param(adapter("LoRA"), Quantization.INT8, True, {"maxSteps": 120, "learningRate": "1e-2"}, id="Int8"),
]


def difference(task: Task, one: Any, other: Any) -> float:
    """The largest difference of two models' logits for a held-out request."""
    ids = torch.tensor([task.pairs[-1][0]])
    with torch.no_grad():
        return float((one.eval()(input_ids=ids).logits - other.eval()(input_ids=ids).logits).abs().max())


@pytest.mark.parametrize(("wish", "quantization", "extend", "training"), LEARNING)
def test_a_base_that_cannot_call_learns_to(
    skilled: Callable[[bool], Task],
    tmp_path: Path,
    wish: Adapter,
    quantization: Quantization,
    extend: bool,
    training: dict[str, object],
):
    """Proves that the method trains, new tokens and all, and that what is saved answers as what was trained."""
    task = skilled(extend)
    model = task.model(quantization)
    assert task.exact(model) == 0
    trained = task.train(tmp_path / "run", wish, model, **training).model
    save_trained(trained, BaseModel("acme/tiny", "main"), task.tokenizer, tmp_path / "out", torch.float32)
    loaded = models.load_adapter(task.model(quantization), tmp_path / "out")
    assert task.exact(loaded) >= 0.5
    assert difference(task, trained, loaded) < 1e-4


def test_ia3_moves_a_base_with_a_few_factors(skilled: Callable[[bool], Task], tmp_path: Path):
    """Proves that IA3 trains and is loaded as it was saved, in some kilobytes.

    Factors alone teach so small a base no new words, so the loss has to show it.
    """
    task = skilled(False)
    wish = adapter("IA3", ia3={"targetModules": ["all-linear"]})
    result = task.train(tmp_path / "run", wish, task.model(), maxSteps=40, learningRate="1e-1")
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    save_trained(result.model, BaseModel("acme/tiny", "main"), task.tokenizer, tmp_path / "out", torch.float32)
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 32_000
    loaded = models.load_adapter(task.model(), tmp_path / "out")
    assert difference(task, result.model, loaded) < 1e-4

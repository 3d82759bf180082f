"""Within a run: steps split into forward passes, out-of-memory errors, resuming, early stopping."""

from pathlib import Path
from typing import Any

import pytest
import torch
from learn.tasks import CPU, Task, a_task, adapter
from transformers import AutoTokenizer
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.training import Training
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import attention, held_out, sft
from tunemill_trainer.learn.adapter import adapter_config
from tunemill_trainer.learn.loss import Scores, score_at_once, score_in_tiles
from tunemill_trainer.learn.passes import Pass
from tunemill_trainer.learn.plan import Plan

WITHOUT_DROPOUT = {"lora": {"dropout": "0"}, "adalora": {"dropout": "0"}}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base model with random weights."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


@pytest.fixture
def whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with room for 8 rows in a forward pass; the row counts of all passes."""
    taken: list[int] = []

    def small(model: Any, batch: Pass) -> Scores:
        rows = len(batch.inputs["rows"].lengths)
        if rows > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        taken.append(rows)
        return score_at_once(model, batch)

    monkeypatch.setattr("tunemill_trainer.learn.trainer.score_for", lambda _device: small)
    return taken


def figures(history: list[dict]) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    return [(entry["loss"], entry["grad_norm"]) for entry in history]


def test_splitting_a_step_changes_no_result(raw: Task, tmp_path: Path):
    """The loss is the mean over the step's supervised tokens, for any size of passes."""
    adapter_spec = adapter("LoRA", **WITHOUT_DROPOUT)
    whole, cut = (
        raw.train(tmp_path / str(tokens), adapter_spec, raw.model(), count=48, made=Plan(3, 1, tokens))
        for tokens in (10**6, 64)
    )
    assert len(whole.history) == 3
    for one, other in zip(figures(whole.history), figures(cut.history), strict=True):
        # Rounding makes 2e-7 of it, the mean of the passes' means 6e-5.
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "quantization", "precision"),
    [
        ("AdaLoRA", Quantization.NONE, 1e-4),
        ("Full", Quantization.NONE, 1e-4),
        ("IA3", Quantization.NONE, 1e-4),
        ("LoRA", Quantization.NF4, 1e-4),
        # Which columns it keeps in 16 bits depends on all rows of a pass.
        ("LoRA", Quantization.INT8, 0.05),
    ],
)
def test_every_method_gives_the_same_results_on_concatenated_and_padded_rows(
    raw: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    quantization: Quantization,
    precision: float,
):
    """With adapters, new tokens and quantized weights."""
    adapter_spec, settings = adapter(method, **WITHOUT_DROPOUT), {"count": 32, "maxSteps": 2, "held_out": True}
    laid = raw.train(tmp_path / "laid", adapter_spec, raw.model(quantization), **settings)
    monkeypatch.setattr(attention, "FAMILIES", frozenset())
    padded = raw.train(tmp_path / "padded", adapter_spec, raw.model(quantization), **settings)
    for one, other in zip(figures(laid.history), figures(padded.history), strict=True):
        assert one == pytest.approx(other, rel=precision)
    assert laid.best is not None
    assert padded.best is not None
    assert laid.best.loss == pytest.approx(padded.best.loss, rel=precision)


def test_passes_that_do_not_fit_are_split_without_losing_rows(raw: Task, tmp_path: Path, whole_in_memory: list[int]):
    """The run continues with the same steps, and fails when one row does not fit."""
    result = raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), raw.model(), count=48)
    assert sum(whole_in_memory) == 48
    assert max(whole_in_memory) <= 8
    assert result.finished


def test_mixed_precision_applies_wherever_a_loss_is_computed(
    raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also for the loss for GPUs, which bypasses the model's forward, in training and on held-out rows."""
    seen = []

    def watched(model: Any, batch: Pass) -> Scores:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return score_in_tiles(model, batch)

    monkeypatch.setattr("tunemill_trainer.learn.trainer.score_for", lambda _device: watched)
    settings = Training(batch_size=8, max_steps=1, learning_rate="1e-4")
    run = sft.Run(settings, Plan(1, 1), CPU, torch.bfloat16, tmp_path)
    model, speaker = raw.model(), AutoTokenizer.from_pretrained(raw.tokenizer)
    adapter_spec = adapter_config(adapter("LoRA"), model, raw.tokens, 1)
    sft.train(run, model, adapter_spec, speaker, raw.rows(8), [], None, raw.held_out()[:4])
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("method", ["AdaLoRA", "Full", "LoRA"])
def test_a_resumed_run_equals_the_undisturbed_one_bit_for_bit(raw: Task, tmp_path: Path, method: str):
    """The checkpoint has all state, including AdaLoRA's averages and ranks, and dropout."""
    settings = {"count": 48, "maxSteps": 8, "batchSize": 8, "checkpoint": {"everySteps": 3}}
    undisturbed = raw.train(tmp_path / "run", adapter(method), raw.model(), **settings)
    resumed = raw.train(
        tmp_path / "again",
        adapter(method),
        raw.model(),
        resume_from=tmp_path / "run" / "checkpoint-3",
        **settings,
    )
    assert figures(resumed.history) == figures(undisturbed.history)
    for (name, one), (_, other) in zip(
        undisturbed.model.named_parameters(), resumed.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_early_stopping_keeps_the_best_epoch(raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With patience; the kept epoch has the lowest loss, and a resumed run decides equally."""
    settings = {
        "count": 16,
        "batchSize": 8,
        "held_out": True,
        "epochs": 20,
        "learningRate": "1e-1",
        "earlyStopping": {"patience": 2},
        "checkpoint": {"everySteps": 1, "keep": 20},
    }
    result = raw.train(tmp_path / "run", adapter("LoRA"), raw.model(), **settings)
    assert result.best is not None
    measured = [entry["held_out_loss"] for entry in result.held_out]
    assert result.finished
    assert result.best.loss == min(measured)
    assert len(measured) < 20
    assert measured.index(min(measured)) == len(measured) - 3
    rows = raw.held_out()
    again = sum(float(_loss(result.model, row)) * _answer(row) for row in rows) / sum(map(_answer, rows))
    assert again == pytest.approx(result.best.loss, rel=1e-4)

    last = tmp_path / "run" / f"checkpoint-{result.steps - 1}"
    resumed = raw.train(tmp_path / "again", adapter("LoRA"), raw.model(), resume_from=last, **settings)
    assert (resumed.steps, resumed.best) == (result.steps, result.best)
    # The base's rows for new tokens hold what the last forward pass wrote there.
    trained = ([part for part in each.model.parameters() if part.requires_grad] for each in (result, resumed))
    assert all(torch.equal(*pair) for pair in zip(*trained, strict=True))


def _loss(model: Any, row: dict[str, list[int]]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss


def _answer(row: dict[str, list[int]]) -> int:
    return sum(label != -100 for label in row["labels"])


@pytest.mark.parametrize(
    ("rows", "batch", "steps", "expected"),
    [(32, 16, 6, {2, 4, 6}), (33, 16, 7, {3, 5, 7}), (100, 16, 3, {3}), (5, 16, 3, {1, 2, 3})],
)
def test_epochs_end_with_their_last_row(rows: int, batch: int, steps: int, expected: set[int]):
    """A run shorter than an epoch is measured at its end, and tiny data at most once per step."""
    assert held_out.ends_of_epochs(rows, batch, steps) == expected


@pytest.mark.parametrize("target", ["no_such_layer", "embed_tokens", "lm_head"])
def test_an_unsupported_target_module_is_refused(raw: Task, target: str):
    """Neither embeddings nor head get an adapter; the message has the supported modules."""
    with pytest.raises(StageError, match=rf"q_proj.*found .{target}") as error:
        adapter_config(adapter("LoRA", lora={"targetModules": ["q_proj", target]}), raw.model(), raw.tokens, 2)
    assert error.value.reason is Reason.INVALID_SPEC


def test_too_few_steps_for_adalora_are_refused(raw: Task):
    """The message has the fields that add steps."""
    with pytest.raises(StageError, match=r"maxSteps") as error:
        adapter_config(adapter("AdaLoRA"), raw.model(), raw.tokens, 1)
    assert error.value.reason is Reason.INVALID_SPEC

"""What happens within a run: steps cut into forward passes, memory that is not enough, resuming, stopping early."""

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
    """A base with random weights, for what does not need to be learnt."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


@pytest.fixture
def whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that takes 8 rows in a forward pass and no more; the rows of all passes that it took."""
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


def test_how_a_step_is_cut_changes_nothing(raw: Task, tmp_path: Path):
    """Proves that the loss is the mean over the step's supervised tokens, however few rows a pass has."""
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
def test_every_method_trains_on_rows_end_to_end_as_on_padded_rows(
    raw: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    quantization: Quantization,
    precision: float,
):
    """Proves that adapters, new tokens and quantised weights do not care how rows lie."""
    adapter_spec, settings = adapter(method, **WITHOUT_DROPOUT), {"count": 32, "maxSteps": 2, "held_out": True}
    laid = raw.train(tmp_path / "laid", adapter_spec, raw.model(quantization), **settings)
    monkeypatch.setattr(attention, "FAMILIES", frozenset())
    padded = raw.train(tmp_path / "padded", adapter_spec, raw.model(quantization), **settings)
    for one, other in zip(figures(laid.history), figures(padded.history), strict=True):
        assert one == pytest.approx(other, rel=precision)
    assert laid.best is not None
    assert padded.best is not None
    assert laid.best.loss == pytest.approx(padded.best.loss, rel=precision)


def test_rows_that_do_not_fit_are_cut_smaller_and_none_is_lost(raw: Task, tmp_path: Path, whole_in_memory: list[int]):
    """Proves that a run goes on after a lack of memory with the same steps, and ends when one row does not fit."""
    result = raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), raw.model(), count=48)
    assert sum(whole_in_memory) == 48
    assert max(whole_in_memory) <= 8
    assert result.finished


def test_mixed_precision_is_on_wherever_a_loss_is_computed(raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Proves it for the loss of GPUs, which does not call the model's forward, in training and on held-out rows."""
    seen = []

    def watched(model: Any, batch: Pass) -> Scores:
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return score_in_tiles(model, batch)

    monkeypatch.setattr("tunemill_trainer.learn.trainer.score_for", lambda _device: watched)
    settings = Training(batch_size=8, max_steps=1)
    run = sft.Run(settings, Plan(1, 1), CPU, torch.bfloat16, tmp_path)
    model, speaker = raw.model(), AutoTokenizer.from_pretrained(raw.tokenizer)
    adapter_spec = adapter_config(adapter("LoRA"), model, raw.tokens, 1)
    sft.train(run, model, adapter_spec, speaker, raw.rows(8), [], None, raw.held_out()[:4])
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("method", ["AdaLoRA", "Full", "LoRA"])
def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(raw: Task, tmp_path: Path, method: str):
    """Proves that a checkpoint holds all that the next step depends on: AdaLoRA's memory and ranks, and dropout."""
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


def test_training_ends_when_the_held_out_loss_rises_and_keeps_the_best_epoch(
    raw: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Proves patience, that what is kept has the lowest loss, and that a resumed run decides alike."""
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
def test_epochs_end_where_their_last_row_was_seen(rows: int, batch: int, steps: int, expected: set[int]):
    """Proves that a run without a whole epoch is measured at its end, and tiny data not more than once a step."""
    assert held_out.ends_of_epochs(rows, batch, steps) == expected


@pytest.mark.parametrize("target", ["no_such_layer", "embed_tokens", "lm_head"])
def test_a_target_module_that_cannot_carry_an_adapter_is_refused(raw: Task, target: str):
    """Proves that neither embeddings nor head get an adapter, and that the message has what the model offers."""
    with pytest.raises(StageError, match=rf"q_proj.*found .{target}") as error:
        adapter_config(adapter("LoRA", lora={"targetModules": ["q_proj", target]}), raw.model(), raw.tokens, 2)
    assert error.value.reason is Reason.INVALID_SPEC


def test_too_few_steps_for_adalora_are_refused(raw: Task):
    """Proves that the message names the fields that add steps."""
    with pytest.raises(StageError, match=r"maxSteps") as error:
        adapter_config(adapter("AdaLoRA"), raw.model(), raw.tokens, 1)
    assert error.value.reason is Reason.INVALID_SPEC

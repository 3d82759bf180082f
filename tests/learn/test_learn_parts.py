"""The parts of training by themselves: device and number format, the guard against divergence, the record of a run."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tunemill_api.failures import Reason
from tunemill_api.finetune import Quantization
from tunemill_api.training import Divergence, Precision
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import checkpoints, curve, devices
from tunemill_trainer.learn.callbacks import CheckpointsByTime, CheckpointUploads, DivergenceGuard, rate_to_try
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.prepared import NewToken, Tokens

CPU = Device("cpu", "cpu")
HISTORY = [
    {"step": step, "epoch": step / 40, "loss": 4 * math.exp(-step / 15) + 0.1, "learning_rate": 1e-3, "num_tokens": 9.0}
    for step in range(1, 41)
]


def watched(losses: list[float], divergence: Divergence = Divergence.STOP) -> None:
    """Show losses to the guard of a model with a thousand tokens, one a step."""
    guard = DivergenceGuard(1000, divergence)
    for step, loss in enumerate(losses, start=1):
        state, arguments = SimpleNamespace(global_step=step), SimpleNamespace(learning_rate=0.3)
        guard.on_log(arguments, state, None, logs={"loss": loss})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(loss: float) -> None:
    """Proves that it is found in the very log in which it shows, and that step and learning rate are named."""
    with pytest.raises(StageError, match=r"step 3.*rate of 0\.3") as error:
        watched([2.0, 1.9, loss])
    assert error.value.reason == Reason.TRAINING_DIVERGED
    assert error.value.exit_code == 64


def test_a_model_that_became_worse_than_guessing_ends_the_run() -> None:
    """Proves that a run whose loss exploded without becoming infinite does not waste its hours."""
    with pytest.raises(StageError, match=r"above the loss of random guessing \(6\.908\)") as error:
        watched([2.0, 3.0, 7.5, 8.1, 9.0, 8.2, 8.8])
    assert 'learningRate "3e-2"' in error.value.failure.remedy


def test_a_rising_loss_may_be_ignored_but_not_one_that_is_no_number() -> None:
    """Proves what spec.training.divergence Ignore means."""
    watched([2.0, 3.0, 7.5, 8.1, 9.0, 8.2, 8.8], Divergence.IGNORE)
    with pytest.raises(StageError):
        watched([2.0, math.nan], Divergence.IGNORE)


def saved_at(minutes: int, steps: list[float], every_steps: int = 10_000) -> list[int]:
    """Return after which steps a checkpoint is saved, with steps that end at these minutes."""
    seconds = 0.0
    callback = CheckpointsByTime(minutes, lambda: seconds)
    seconds = 3600.0  # the model is loaded
    callback.on_train_begin(None, None, None)
    saved = []
    for step, ended in enumerate(steps, start=1):
        seconds = 3600 + 60 * ended
        control = SimpleNamespace(should_save=step % every_steps == 0)
        callback.on_step_end(None, SimpleNamespace(global_step=step), control)
        if control.should_save:
            saved.append(step)
            callback.on_save(None, SimpleNamespace(global_step=step), control)
    return saved


def test_a_checkpoint_is_saved_when_the_last_one_is_too_old() -> None:
    """Proves that a lost node costs minutes, however many steps spec.training.checkpoint.everySteps allows."""
    assert saved_at(15, [5, 10, 15, 20, 29, 30, 31]) == [3, 6]
    assert saved_at(15, [14, 40, 41, 55.5]) == [2, 4], "a long step, and then counted from its checkpoint"


def test_a_checkpoint_that_was_due_by_steps_counts() -> None:
    """Proves that the two rules together save no more often than either asks for."""
    assert saved_at(15, [10, 20, 30, 40], every_steps=2) == [2, 4]
    assert saved_at(15, [10, 20, 30, 40, 50], every_steps=4) == [2, 4]


def test_a_checkpoint_is_written_when_the_one_before_is_uploaded(tmp_path: Path) -> None:
    """Proves that the trainer, which then removes the one before, never removes what is still read."""
    done: list[str] = []
    uploads = SimpleNamespace(wait=lambda: done.append("waited"), put=lambda folder, _step: done.append(folder.name))
    callback = CheckpointUploads(uploads, 0.0)
    for step, due in ((1, False), (2, True)):
        state = SimpleNamespace(global_step=step)
        callback.on_step_end(None, state, SimpleNamespace(should_save=due))
        if due:
            (tmp_path / f"checkpoint-{step}").mkdir()
            callback.on_save(SimpleNamespace(output_dir=tmp_path), state, None)
    assert done == ["waited", "checkpoint-2"]


def test_zero_minutes_save_after_steps_only() -> None:
    """Proves that the rule can be turned off."""
    assert saved_at(0, [60, 600, 6000]) == []
    assert saved_at(0, [60, 600, 6000], every_steps=2) == [2]


@pytest.mark.parametrize(
    ("rate", "best_rate", "expected"),
    [(0.3, 0.0, "3e-2"), (0.3, 0.3, "1e-1"), (0.3, 0.01, "5e-3"), (1e-4, 1e-9, "1e-6"), (2e-2, 1.5e-2, "6e-3")],
)
def test_the_rate_to_try_is_one_that_helped_in_the_warm_up(rate: float, best_rate: float, expected: str) -> None:
    """Proves that it is always lower, has one digit, and follows the loss where the warm-up showed it."""
    assert rate_to_try(rate, best_rate) == expected
    assert float(expected) < rate


@pytest.mark.parametrize(
    "losses",
    [
        [0.1, 2.5, 0.2, 3.0, 0.1, 2.8, 0.3, 2.9, 2.7, 2.6, 2.9],
        [2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 9.0, 9.0],
        [12.0, 11.0, 10.0, 9.5, 9.0, 8.5, 8.0, 7.5],
    ],
    ids=["single rows", "a short spike", "a start from random weights"],
)
def test_what_recovers_or_never_was_better_is_no_divergence(losses: list[float]) -> None:
    """Proves that noise of small batches, a spike and a poor start do not end a run that would have succeeded."""
    watched(losses)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.AUTO, torch.float32), (Precision.FP32, torch.float32), (Precision.BF16, torch.bfloat16)],
)
def test_the_cpu_computes_in_fp32_unless_told(precision: Precision, expected: torch.dtype) -> None:
    """Proves what Auto means without a GPU."""
    assert devices.dtype(precision, CPU) is expected


@pytest.mark.parametrize(
    ("native", "precision", "expected"),
    [
        (True, Precision.AUTO, torch.bfloat16),
        (False, Precision.AUTO, torch.float16),
        (True, Precision.FP16, torch.float16),
        (True, Precision.FP32, torch.float32),
    ],
)
def test_a_gpu_computes_in_the_best_format_it_has(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: Precision, expected: torch.dtype
) -> None:
    """Proves that Auto means BF16 where the GPU has it and FP16 else; an emulated BF16 is slow and does not count."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert devices.dtype(precision, Device("cuda", "GPU")) is expected


@pytest.mark.parametrize("device", [CPU, Device("cuda", "Old GPU")], ids=["cpu", "gpu"])
def test_a_format_that_the_device_has_not_is_refused(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """Proves that the message names the field and what would work."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(StageError, match=r"spec\.training\.precision .* expected") as error:
        devices.dtype(Precision.FP16 if device is CPU else Precision.BF16, device)
    assert error.value.reason == Reason.INVALID_SPEC


def test_a_gpu_that_a_rank_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sees its own GPU only; the message says which one of the node that is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StageError, match=r"spec\.compute\.gpus requests 4 GPUs, but .* for GPU 3: ") as error:
        devices.choose(4, local_rank=3)
    assert error.value.reason == Reason.CUDA_UNAVAILABLE


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),  # V100
        ((7, 5), True),  # T4
        ((8, 0), True),  # A100
        ((8, 9), True),  # L4: machine code of the same major version
        ((9, 0), True),  # H100
        ((10, 3), True),  # B300
        ((11, 0), False),  # a major version that nothing was compiled for
        ((12, 1), True),  # GB10
    ],
)
def test_a_gpu_needs_kernels_of_its_major_version(capability: tuple[int, int], runs: bool) -> None:
    """Proves that an older minor version is enough, and an older major version is not, by what the pinned wheel has."""
    compiled_for = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    assert devices.has_kernels(capability, compiled_for) is runs


def test_intermediate_code_runs_on_newer_gpus_and_special_code_on_one_alone() -> None:
    """Proves how the other names in a list of architectures are read."""
    assert devices.has_kernels((11, 0), ["sm_90", "compute_90"])
    assert not devices.has_kernels((8, 0), ["compute_90"])
    assert not devices.has_kernels((9, 1), ["sm_90a"])
    assert devices.has_kernels((10, 3), ["sm_100f"])
    assert not devices.has_kernels((9, 0), ["unknown"])


def test_a_gpu_without_kernels_is_refused_with_what_it_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that the message names the GPU, its compute capability and what is supported."""
    old = SimpleNamespace(name="Tesla V100-SXM2-16GB", total_memory=16 << 30, major=7, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: old)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(StageError, match=r"Tesla V100-SXM2-16GB has compute capability 7\.0.*sm_75, sm_80") as error:
        devices.choose(1)
    assert error.value.reason == Reason.CUDA_UNAVAILABLE
    assert "nodeSelector" in error.value.failure.remedy
    old.major, old.minor = 8, 9
    assert devices.choose(1) == Device("cuda", "Tesla V100-SXM2-16GB", 16 << 30)


@pytest.mark.parametrize("family", sorted(devices.OUT_OF_RANGE_IN_FP16))
def test_families_that_fp16_breaks_never_get_it(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Proves that Auto takes FP32 on a GPU without BF16, and that FP16 is refused on every GPU."""
    gpu = Device("cuda", "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert devices.dtype(Precision.AUTO, gpu, family) is torch.float32
    with pytest.raises(StageError, match=rf"Auto or FP32, found FP16: models of type {family}"):
        devices.dtype(Precision.FP16, gpu, family)
    with pytest.raises(StageError, match=r"BF16 is not supported by Tesla T4: expected FP32"):
        devices.dtype(Precision.BF16, gpu, family)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert devices.dtype(Precision.AUTO, gpu, family) is torch.bfloat16
    with pytest.raises(StageError, match=r"Auto or BF16, found FP16"):
        devices.dtype(Precision.FP16, gpu, family)


@pytest.mark.parametrize(
    ("number_format", "quantization", "field"),
    [
        (torch.float16, Quantization.NONE, "spec.training.precision"),
        (torch.float16, Quantization.NF4, "spec.training.precision"),
        (torch.bfloat16, Quantization.INT8, "spec.baseModel.quantization"),
        (torch.bfloat16, Quantization.NF4, ""),
        (torch.float32, Quantization.NONE, ""),
    ],
)
def test_a_number_out_of_range_is_not_blamed_on_the_learning_rate(
    number_format: torch.dtype, quantization: Quantization, field: str
) -> None:
    """Proves that the remedy names what computes in FP16, and the learning rate only where nothing does."""
    guard = DivergenceGuard(1000, out_of_range=devices.fp16_remedy(number_format, quantization))
    state, arguments = SimpleNamespace(global_step=3), SimpleNamespace(learning_rate=1e-4)
    with pytest.raises(StageError) as error:
        guard.on_log(arguments, state, None, logs={"loss": math.nan})
    assert error.value.reason == Reason.TRAINING_DIVERGED
    said = f"{error.value.message} {error.value.failure.remedy}"
    assert ("learningRate" in said) == (not field)
    assert field in said


def test_the_record_is_whole_in_all_its_forms(tmp_path: Path) -> None:
    """Proves that lines and TensorBoard events show the same run."""
    measured = [{"step": 40, "epoch": 1.0, "held_out_loss": 0.5}]
    curve.write_record(HISTORY, measured, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "epoch": 1 / 40, "loss": HISTORY[0]["loss"], "learning_rate": 1e-3, "tokens": 9.0}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 41))
    assert [(event.step, event.value) for event in events.Scalars("train/held_out_loss")] == [(40, 0.5)]
    assert [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()] == measured


def test_a_run_of_one_step_has_a_record_too(tmp_path: Path) -> None:
    """Proves that nothing divides by the length of the run."""
    curve.write_record(HISTORY[:1], [], tmp_path)
    assert curve.mean_of_last_tenth(HISTORY[:1]) == HISTORY[0]["loss"]


def test_the_reported_loss_is_that_of_the_last_tenth() -> None:
    """Proves the figure of TrainedFacts.loss."""
    assert curve.mean_of_last_tenth(HISTORY) == pytest.approx(sum(entry["loss"] for entry in HISTORY[-4:]) / 4)


def test_the_clock_of_a_checkpoint_survives_its_journey(tmp_path: Path) -> None:
    """Proves that the seconds of all attempts can be summed."""
    checkpoints.write_clock(tmp_path, 12.3456)
    assert checkpoints.read_clock(tmp_path) == 12.346


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_begin_as_the_mean_of_their_pieces_and_no_row_is_lost(tied: bool) -> None:
    """Proves that an embedding larger than the vocabulary is not cut, and that each new row is the mean of others.

    Those are the pieces of the token; all rows where an older prepare has left no pieces, or only new tokens are such.
    """
    from transformers import LlamaConfig, LlamaForCausalLM
    from tunemill_trainer.learn.models import extend_vocabulary

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    for added, rows in ((60, 64), (64, 67)):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        layers = (model.get_input_embeddings, model.get_output_embeddings)
        before = [layer().weight.detach().clone() for layer in layers]
        new = (
            NewToken(added, "<tool_call>", (3, 9, 9)),
            NewToken(added + 1, "<plan>"),
            NewToken(added + 2, "<plan", (added, added + 1)),
        )
        extend_vocabulary(model, Tokens("Extend", new, (1,), 0, added + 3))
        for layer, old in zip(layers, before, strict=True):
            after = layer().weight
            assert after.shape[0] == rows
            assert torch.allclose(after[added], (old[3] + 2 * old[9]) / 3, atol=1e-6)
            for place in (added + 1, added + 2):
                assert torch.allclose(after[place], old[:added].mean(dim=0), atol=1e-6)
            assert torch.equal(after[:added], old[:added])
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

"""Units of training: device and number format, divergence detection, the training record."""

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
    """Pass losses to the divergence detection of a model with a thousand tokens, one per step."""
    guard = DivergenceGuard(1000, divergence)
    for step, loss in enumerate(losses, start=1):
        state, arguments = SimpleNamespace(global_step=step), SimpleNamespace(learning_rate=0.3)
        guard.on_log(arguments, state, None, logs={"loss": loss})


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_nan_loss_ends_the_run(loss: float) -> None:
    """At its first log entry, with step and learning rate."""
    with pytest.raises(StageError, match=r"step 3.*rate of 0\.3") as error:
        watched([2.0, 1.9, loss])
    assert error.value.reason == Reason.TRAINING_DIVERGED
    assert error.value.exit_code == 64


def test_a_loss_above_that_of_guessing_ends_the_run() -> None:
    """An exploded but finite loss does not waste hours."""
    with pytest.raises(StageError, match=r"above the loss of random guessing \(6\.908\)") as error:
        watched([2.0, 3.0, 7.5, 8.1, 9.0, 8.2, 8.8])
    assert 'learningRate "3e-2"' in error.value.failure.remedy


def test_a_rising_loss_can_be_ignored_but_not_a_nan_loss() -> None:
    """With spec.training.divergence Ignore."""
    watched([2.0, 3.0, 7.5, 8.1, 9.0, 8.2, 8.8], Divergence.IGNORE)
    with pytest.raises(StageError):
        watched([2.0, math.nan], Divergence.IGNORE)


def saved_at(minutes: int, steps: list[float], every_steps: int = 10_000) -> list[int]:
    """Return the steps at which a checkpoint is saved, with steps that end at these minutes."""
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
    """A lost node costs minutes, whatever spec.training.checkpoint.everySteps is."""
    assert saved_at(15, [5, 10, 15, 20, 29, 30, 31]) == [3, 6]
    assert saved_at(15, [14, 40, 41, 55.5]) == [2, 4], "a long step, and then counted from its checkpoint"


def test_a_checkpoint_by_steps_resets_the_timer() -> None:
    """The two rules together do not save more often than either alone."""
    assert saved_at(15, [10, 20, 30, 40], every_steps=2) == [2, 4]
    assert saved_at(15, [10, 20, 30, 40, 50], every_steps=4) == [2, 4]


def test_a_checkpoint_is_written_after_the_previous_one_is_uploaded(tmp_path: Path) -> None:
    """The trainer removes the previous one, which must not be read at that time."""
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


def test_zero_minutes_disable_checkpoints_by_time() -> None:
    """Only the rule for steps applies."""
    assert saved_at(0, [60, 600, 6000]) == []
    assert saved_at(0, [60, 600, 6000], every_steps=2) == [2]


@pytest.mark.parametrize(
    ("rate", "best_rate", "expected"),
    [(0.3, 0.0, "3e-2"), (0.3, 0.3, "1e-1"), (0.3, 0.01, "5e-3"), (1e-4, 1e-9, "1e-6"), (2e-2, 1.5e-2, "6e-3")],
)
def test_the_suggested_rate_worked_during_warm_up(rate: float, best_rate: float, expected: str) -> None:
    """It is always lower, has one digit, and follows the loss of the warm-up."""
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
def test_a_recovering_or_constantly_high_loss_is_no_divergence(losses: list[float]) -> None:
    """Noise of small batches, a spike and a poor start do not end a run."""
    watched(losses)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.AUTO, torch.float32), (Precision.FP32, torch.float32), (Precision.BF16, torch.bfloat16)],
)
def test_the_cpu_computes_in_fp32_by_default(precision: Precision, expected: torch.dtype) -> None:
    """For Auto without a GPU."""
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
def test_a_gpu_computes_in_its_best_format(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: Precision, expected: torch.dtype
) -> None:
    """Auto is BF16 if the GPU supports it in hardware, and FP16 otherwise."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation)
    assert devices.dtype(precision, Device("cuda", "GPU")) is expected


@pytest.mark.parametrize("device", [CPU, Device("cuda", "Old GPU")], ids=["cpu", "gpu"])
def test_an_unsupported_format_is_refused(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    """The message has the field and the supported formats."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(StageError, match=r"spec\.training\.precision .* expected") as error:
        devices.dtype(Precision.FP16 if device is CPU else Precision.BF16, device)
    assert error.value.reason == Reason.INVALID_SPEC


def test_a_missing_gpu_of_a_rank_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank sees only its own GPU; the message has its index on the node."""
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
    """An older minor version is enough, an older major version is not, for the architectures of the pinned wheel."""
    compiled_for = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
    assert devices.has_kernels(capability, compiled_for) is runs


def test_ptx_runs_on_newer_gpus_and_architecture_specific_code_on_one_only() -> None:
    """The other names in a list of architectures."""
    assert devices.has_kernels((11, 0), ["sm_90", "compute_90"])
    assert not devices.has_kernels((8, 0), ["compute_90"])
    assert not devices.has_kernels((9, 1), ["sm_90a"])
    assert devices.has_kernels((10, 3), ["sm_100f"])
    assert not devices.has_kernels((9, 0), ["unknown"])


def test_a_gpu_without_kernels_is_refused_with_the_supported_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the GPU and its compute capability."""
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
def test_families_without_fp16_support_never_get_it(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Auto is FP32 on a GPU without BF16, and FP16 is refused on every GPU."""
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
def test_an_fp16_overflow_is_not_blamed_on_the_learning_rate(
    number_format: torch.dtype, quantization: Quantization, field: str
) -> None:
    """The remedy names the FP16 setting, and the learning rate only if nothing computes in FP16."""
    guard = DivergenceGuard(1000, out_of_range=devices.fp16_remedy(number_format, quantization))
    state, arguments = SimpleNamespace(global_step=3), SimpleNamespace(learning_rate=1e-4)
    with pytest.raises(StageError) as error:
        guard.on_log(arguments, state, None, logs={"loss": math.nan})
    assert error.value.reason == Reason.TRAINING_DIVERGED
    said = f"{error.value.message} {error.value.failure.remedy}"
    assert ("learningRate" in said) == (not field)
    assert field in said


def test_the_record_is_complete_in_all_formats(tmp_path: Path) -> None:
    """JSON lines and TensorBoard events have the same run."""
    measured = [{"step": 40, "epoch": 1.0, "held_out_loss": 0.5}]
    curve.write_record(HISTORY, measured, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "epoch": 1 / 40, "loss": HISTORY[0]["loss"], "learning_rate": 1e-3, "tokens": 9.0}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 41))
    assert [(event.step, event.value) for event in events.Scalars("train/held_out_loss")] == [(40, 0.5)]
    assert [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()] == measured


def test_a_run_of_one_step_has_a_record(tmp_path: Path) -> None:
    """No division by the length of the run fails."""
    curve.write_record(HISTORY[:1], [], tmp_path)
    assert curve.mean_of_last_tenth(HISTORY[:1]) == HISTORY[0]["loss"]


def test_the_reported_loss_is_that_of_the_last_tenth() -> None:
    """The value of TrainedFacts.loss."""
    assert curve.mean_of_last_tenth(HISTORY) == pytest.approx(sum(entry["loss"] for entry in HISTORY[-4:]) / 4)


def test_the_elapsed_time_of_a_checkpoint_is_restored(tmp_path: Path) -> None:
    """The seconds of all attempts can be summed."""
    checkpoints.write_clock(tmp_path, 12.3456)
    assert checkpoints.read_clock(tmp_path) == 12.346


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_initialized_with_the_mean_of_their_pieces(tied: bool) -> None:
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

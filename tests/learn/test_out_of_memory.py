"""Out-of-memory errors in all forms: recognised, handled with smaller passes, or explained."""

import gc
import json
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learn.tasks import Task, a_task, adapter
from torch import nn
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.errors import StageError
from tunemill_trainer.learn import devices
from tunemill_trainer.learn.devices import Device
from tunemill_trainer.learn.memory_settings import Checkpointing, MemorySettings
from tunemill_trainer.learn.out_of_memory import Shortage, attempt, is_out_of_memory, shortage_of, watched_log
from tunemill_trainer.learn.plan import Plan
from tunemill_trainer.learn.trainer import RankAllocation

OF_PYTORCH = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. "
    "GPU 0 has a total capacity of 21.98 GiB of which 0.25 GiB is free. "
    "Process 1 has 21.70 GiB memory in use. Of the allocated memory 20.00 GiB is allocated by PyTorch, and 0.50 GiB is "
    "reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.\nMore"
)
FORMS = {
    "PyTorch's allocator": lambda: torch.OutOfMemoryError(OF_PYTORCH),
    "fragmentation": lambda: torch.OutOfMemoryError(OF_PYTORCH.replace("0.50 GiB is", "3.50 GiB is")),
    "CUDA runtime": lambda: torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", 2),
    "Triton": lambda: RuntimeError("Triton Error [CUDA]: out of memory"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "the host": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4294967296 bytes. Error code 12 (Cannot allocate memory)"
    ),
}
every_form = pytest.mark.parametrize("error", FORMS.values(), ids=FORMS)


def caused(error: BaseException) -> RuntimeError:
    """An error of a library that wraps another one."""
    wrapper = RuntimeError("the compiled function failed")
    wrapper.__cause__ = error
    return wrapper


@every_form
def test_every_form_of_oom_is_recognised_also_if_wrapped(error: Callable[[], Exception]):
    """Errors of libraries, and errors that a compiler wraps around them."""
    assert is_out_of_memory(error())
    assert is_out_of_memory(caused(error()))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("out of memory"),
    ],
    ids=["shared memory of a block", "illegal access", "shapes", "another class"],
)
def test_other_errors_are_not_recognised_as_oom(error: Exception):
    """An error that smaller passes cannot fix is not retried."""
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        attempt(lambda: raised(error))


def raised(error: Exception) -> None:
    """Raise it."""
    raise error


def test_the_sizes_in_an_error_are_parsed():
    """The needed and the available memory in MiB."""
    found = shortage_of(FORMS["PyTorch's allocator"]())
    assert (found.requested, found.allocated, found.free, found.reserved) == (1536, 20480, 256, 512)
    assert (found.needed, found.available, found.capacity) == (22016, 21248, 22508)
    assert not found.is_fragmentation
    assert shortage_of(FORMS["fragmentation"]()).is_fragmentation
    assert shortage_of(FORMS["the host"]()).requested == 4096
    assert shortage_of(FORMS["cuBLAS"]()).needed == 0


def test_a_failed_attempt_releases_its_tensors():
    """Those in the frames of the traceback are freed before the next attempt."""
    left: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        activations = torch.zeros(1000)
        left.append(weakref.ref(activations))
        raise torch.OutOfMemoryError(OF_PYTORCH)

    gc.disable()
    try:
        assert isinstance(attempt(work), Shortage)
    finally:
        gc.enable()
    assert left[0]() is None


def test_the_ladder_ends_with_single_rows():
    """Each rung needs less memory than the one before."""
    rung: MemorySettings | None = MemorySettings(4000, 8000)
    seen = []
    for smaller in (2000, 2000, 2000, 1000, None):
        assert rung is not None
        rung = rung.reduced(smaller)
        seen.append(rung and (rung.checkpointing.value, rung.pass_tokens))
    assert seen == [("Selective", 4000), ("Full", 4000), ("Full", 2000), ("Full", 1000), None]
    assert MemorySettings(4000, 8000).reduced_held_out(500) == MemorySettings(4000, 500)


def test_a_resumed_run_starts_at_the_lower_rung():
    """From the checkpoint, and from the operator's count of OOM kills."""
    known, planned = MemorySettings(4000, 8000, Checkpointing.FULL), MemorySettings(2000, 9000)
    assert planned.minimum_with(known) == known.minimum_with(planned) == MemorySettings(2000, 8000, Checkpointing.FULL)
    assert MemorySettings.from_json(json.loads(json.dumps(known.to_json()))) == known


class SmallDevice:
    """A device for a model that raises an error when a pass needs more than it has.

    A pass with gradients needs a unit for each token, a fifth of it in layers that recompute, and a tenth without
    gradients. The error comes in the forward pass, or from the last layer's backward pass.
    """

    def __init__(self, model: Any, units: float, error: Callable[[], Exception], *, in_backward: bool = False) -> None:
        self._layers = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
        self._units = units
        self._error = error
        self._in_backward = in_backward
        self.failed = 0
        self.passes: list[int] = []
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)
        self._full = False

    def _before(self, _model: nn.Module, _arguments: Any, inputs: dict[str, Any]) -> None:
        tokens = inputs["input_ids"].numel()
        layers = [layer.gradient_checkpointing for layer in self._layers if isinstance(layer, nn.Module)]
        share = sum(layers) / len(layers)
        need = tokens * (1 - 0.8 * share) if torch.is_grad_enabled() else tokens / 10
        self._full = need > self._units
        if self._full and not (self._in_backward and torch.is_grad_enabled()):
            self._fail()
        if not self._full:
            self.passes.append(tokens)

    def _after(self, _model: nn.Module, _arguments: Any, output: Any) -> None:
        if self._full and output.logits.requires_grad:
            output.logits.register_hook(lambda _gradient: self._fail())

    def _fail(self) -> None:
        self.failed += 1
        raise self._error()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """A base model with random weights."""
    return a_task(cached_base("qwen3", steps=0), tmp_path_factory.mktemp("raw"))


WITHOUT_DROPOUT = {"lora": {"dropout": "0"}, "adalora": {"dropout": "0"}}
SETTINGS: dict[str, Any] = {"count": 16, "maxSteps": 2, "held_out": True, "checkpoint": {"everySteps": 1, "keep": 9}}


def figures(history: list[dict]) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    return [(entry["loss"], entry["grad_norm"]) for entry in history]


@pytest.fixture(scope="module")
def undisturbed(raw: Task, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run on a device with enough memory."""
    return raw.train(tmp_path_factory.mktemp("whole"), adapter("LoRA", **WITHOUT_DROPOUT), raw.model(), **SETTINGS)


@pytest.mark.parametrize(
    ("form", "in_backward"),
    [("PyTorch's allocator", True), ("CUDA runtime", False), ("Triton", True), ("cuBLAS", False), ("the host", True)],
)
def test_a_run_continues_with_smaller_passes_and_the_same_results(
    raw: Task, undisturbed: Any, tmp_path: Path, form: str, in_backward: bool
):
    """Losses, gradients and token counts are those of a large device, wherever memory ran out."""
    model = raw.model()
    device = SmallDevice(model, 60, FORMS[form], in_backward=in_backward)
    result = raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), model, **SETTINGS)
    assert device.failed >= 3
    assert result.memory_settings.checkpointing is Checkpointing.FULL
    assert result.memory_settings.pass_tokens < 16_384
    for one, other in zip(figures(result.history), figures(undisturbed.history), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert [entry["num_tokens"] for entry in result.history] == [entry["num_tokens"] for entry in undisturbed.history]
    assert result.best.loss == pytest.approx(undisturbed.best.loss, rel=1e-4)
    assert result.history[-1]["checkpointed_layers"] == 1
    assert result.history[-1]["forward_pass_tokens"] == result.memory_settings.pass_tokens


def test_no_more_memory_is_saved_than_needed(raw: Task, undisturbed: Any, tmp_path: Path):
    """A step that fits with every second layer recomputed is neither split nor recomputed further."""
    model = raw.model()
    largest = max(len(ask + say) for ask, say in raw.pairs[:16]) * 16
    device = SmallDevice(model, 0.7 * largest, FORMS["Triton"])
    result = raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), model, **SETTINGS)
    assert device.failed == 1
    assert result.memory_settings == MemorySettings(16_384, 16_384, Checkpointing.SELECTIVE)
    for one, other in zip(figures(result.history), figures(undisturbed.history), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_resumed_run_keeps_its_rung(raw: Task, undisturbed: Any, tmp_path: Path):
    """It is in the checkpoint: the next pod does not fail at all rungs again."""
    model = raw.model()
    SmallDevice(model, 60, FORMS["cuBLAS"])
    raw.train(tmp_path / "run", adapter("LoRA", **WITHOUT_DROPOUT), model, **SETTINGS)
    model = raw.model()
    device = SmallDevice(model, 60, FORMS["cuBLAS"])
    resumed = raw.train(
        tmp_path / "again",
        adapter("LoRA", **WITHOUT_DROPOUT),
        model,
        resume_from=tmp_path / "run" / "checkpoint-1",
        **SETTINGS,
    )
    assert device.failed == 0
    assert device.passes
    assert resumed.memory_settings.checkpointing is Checkpointing.FULL
    for one, other in zip(figures(resumed.history), figures(undisturbed.history), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_with_fragmented_memory_the_pass_is_retried_once_unchanged(raw: Task, tmp_path: Path):
    """Enough but fragmented memory costs one retry and no recomputation."""
    model, tries = raw.model(), []

    def once(_model: nn.Module, _arguments: Any, _inputs: dict[str, Any]) -> None:
        if not tries:
            tries.append(1)
            raise FORMS["fragmentation"]()

    model.register_forward_pre_hook(once, with_kwargs=True)
    result = raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), model, **SETTINGS)
    assert tries
    assert result.memory_settings == MemorySettings(16_384, 16_384)


def test_a_row_that_cannot_fit_ends_the_run(raw: Task, tmp_path: Path):
    """With the length of the row, and without endless retries."""
    model = raw.model()
    SmallDevice(model, 1, FORMS["PyTorch's allocator"])
    longest = max(len(ask + say) for ask, say in raw.pairs[:32])
    with pytest.raises(StageError, match=r"single row of \d+ tokens") as error:
        raw.train(tmp_path, adapter("LoRA", **WITHOUT_DROPOUT), model, count=32, maxSteps=2)
    assert int(error.value.message.partition("row of ")[2].split()[0]) <= longest
    assert error.value.__cause__ is None, "an error that is kept keeps the tensors of its frames"


@pytest.mark.parametrize(
    ("adapter", "quantization", "expected"),
    [
        ("LoRA", "None", ["maxLength below 900", "quantization to NF4", "nodeSelector"]),
        ("LoRA", "NF4", ["maxLength below 900", "nodeSelector"]),
        ("Full", "None", ["maxLength below 900", "method to LoRA", "nodeSelector"]),
    ],
)
def test_an_oom_is_reported_in_mib_with_the_fields_to_change(adapter: str, quantization: str, expected: list[str]):
    """The message has the needed and available memory, the remedy only fields that help."""
    spec = FineTuneSpec.model_validate(
        {
            "baseModel": {"id": "acme/base", "quantization": quantization},
            "dataset": {"uri": "s3://bucket/calls.jsonl"},
            "adapter": {"method": adapter},
            "publish": {"repository": "acme/tuned"},
        }
    )
    gpu = Device("cuda", "NVIDIA L4", 22508 << 20)
    shortage = shortage_of(FORMS["PyTorch's allocator"]())
    error = devices.out_of_memory(gpu, shortage, "a row", devices.memory_remedy(spec, 900))
    assert error.reason is Reason.CUDA_OUT_OF_MEMORY
    assert error.message == (
        "a row does not fit into the GPU's memory: it needs at least 22016 MiB, NVIDIA L4 has 21248 MiB"
    )
    remedy = error.failure.remedy
    assert [part for part in expected if part in remedy] == expected
    assert ("NF4" in remedy, "to LoRA" in remedy) == (quantization == "None" and adapter == "LoRA", adapter == "Full")
    unknown = devices.out_of_memory(gpu, shortage_of(FORMS["Triton"]()), "a row")
    assert unknown.message.endswith("NVIDIA L4 has 22508 MiB")


@every_form
def test_a_stage_without_a_ladder_ends_with_the_same_reason(error: Callable[[], Exception]):
    """Loading, saving and the optimizer state are covered, too."""
    with pytest.raises(StageError) as ended, devices.device_errors(Device("cuda", "GPU", 8 << 30), "loading"):
        raise error()
    assert ended.value.reason is Reason.CUDA_OUT_OF_MEMORY
    assert "loading" in ended.value.message


def test_a_step_skipped_by_the_loss_scaler_does_not_change_adaloras_averages(raw: Task, tmp_path: Path):
    """Infinite gradients of FP16 never affect the allocation of ranks."""
    averages: list[torch.Tensor] = []

    class Overflow(RankAllocation):
        """Has the second step overflow."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            skipped = state.global_step == 1
            if skipped:
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.grad.fill_(float("inf"))
            more["optimizer"] = SimpleNamespace(step_was_skipped=skipped)
            super().on_optimizer_step(args, state, control, model=model, **more)
            averages.extend(model.base_model.rankallocator.exp_avg_ipt.values())

    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr("tunemill_trainer.learn.sft.RankAllocation", Overflow)
        result = raw.train(tmp_path, adapter("AdaLoRA"), raw.model(), count=32, made=Plan(8, 1))
    assert averages
    assert all(bool(average.isfinite().all()) for average in averages)
    assert result.model.peft_config["default"].rank_pattern


def test_a_run_with_only_skipped_measurements_succeeds(raw: Task):
    """AdaLoRA without averages keeps all ranks, and does not fail."""
    from peft import get_peft_model
    from tunemill_trainer.learn.adapter import adapter_config

    model = raw.model()
    model = get_peft_model(model, adapter_config(adapter("AdaLoRA"), model, raw.tokens, 4))
    for step in range(4):
        optimizer = SimpleNamespace(step_was_skipped=True)
        RankAllocation().on_optimizer_step(
            None, SimpleNamespace(global_step=step), None, model=model, optimizer=optimizer
        )
    assert not model.base_model.rankallocator.exp_avg_ipt


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_an_oom_that_a_library_only_logs_is_recognised(level: int):
    """Transformers' error after a failed quantization has no cause."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(level)
    try:
        assert_it_is_known()
    finally:
        assert logger.level == level
        logger.setLevel(before)


def assert_it_is_known() -> None:
    """Fail with and without an out-of-memory message in the log."""
    said = "CONVERSION\n  CUDA out of memory. Tried to allocate 2.00 GiB."
    with pytest.raises(RuntimeError) as error:
        quantise(said)
    assert shortage_of(error.value).requested == 2048
    with pytest.raises(RuntimeError, match="look at the above report"):
        quantise("CONVERSION\n  another error")


def quantise(log: str) -> None:
    """Fail as Transformers does."""
    with watched_log("transformers"):
        logging.getLogger("transformers.report").warning(log)
        raise RuntimeError("We encountered some issues. For details look at the above report!")

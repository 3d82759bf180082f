"""Concatenated rows give the results of padded rows, in each family, with every kernel, and without host syncs."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learn.families import (
    CPU,
    LENGTHS,
    WINDOW,
    a_model,
    both_losses,
    both_losses_with_kernels,
    computed,
    off,
    some_rows,
)
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from tunemill_dev.background import in_own_process
from tunemill_trainer.learn import attention, loss, passes
from tunemill_trainer.learn.attention import Rows


@pytest.mark.parametrize("family", sorted(attention.FAMILIES))
def test_concatenated_rows_have_the_loss_and_gradients_of_padded_rows(family: str):
    """For each family no row attends to another one, with windows and soft caps."""
    model = a_model(family, torch.float64)
    padded = computed(model, passes.make(some_rows(), CPU, padded=True))
    with attention.end_to_end(model, CPU, torch.float32) as laid:
        assert laid
        laid_out = computed(model, passes.make(some_rows(), CPU, padded=False))
    assert laid_out[0] == pytest.approx(padded[0], rel=1e-6)
    assert laid_out[1] == padded[1]
    assert off(laid_out[2], padded[2]) < 1e-6


def test_the_sliding_window_of_a_family_has_an_effect():
    """Otherwise the family's test would not detect a missing window."""
    model = a_model("mistral", torch.float64)
    batch = passes.make(some_rows(), CPU, padded=False)
    with attention.end_to_end(model, CPU, torch.float32):
        narrow = computed(model, batch)
        for layer in model.model.layers:
            layer.self_attn.config.sliding_window = None
        wide = computed(model, batch)
    assert off(wide[2], narrow[2]) > 1e-3


def test_the_loss_equals_that_of_transformers():
    """The mean over the supervised tokens is the one that Transformers computes from all logits."""
    model = a_model("llama", torch.float64)
    row = some_rows((30,))[0]
    expected = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
    scores = loss.score_at_once(model, passes.make([row], CPU, padded=True))
    assert float(scores.loss.detach()) / passes.supervised(row) == pytest.approx(float(expected.detach()), rel=1e-6)


def test_the_model_is_restored_after_training():
    """A trained model generates as before."""
    model = a_model("gemma3_text", torch.float32).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits
    with attention.end_to_end(model, CPU, torch.float32):
        pass
    assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"attention_dropout": 0.1}, "dropout"),
        ({"use_bidirectional_attention": True}, "causal"),
    ],
)
def test_unsupported_attention_uses_padded_rows(changes: dict[str, object], why: str):
    """Rows are concatenated only with tested attention implementations."""
    config = a_model("llama", torch.float32).config
    settings = SimpleNamespace(**{"model_type": "llama", **config.to_dict(), **changes})
    name, reason = attention._choose(settings, CPU, torch.float32)
    assert name is None
    assert why in reason


@pytest.mark.parametrize(
    ("capability", "dtype", "family", "works", "expected"),
    [
        ((9, 0), torch.bfloat16, "llama", True, "tunemill_varlen"),
        ((8, 0), torch.float16, "gemma3_text", True, "tunemill_varlen"),
        ((9, 0), torch.bfloat16, "gemma2", True, "tunemill_flex"),
        ((9, 0), torch.bfloat16, "gemma2", False, None),
        ((9, 0), torch.float32, "llama", True, None),
        ((7, 5), torch.float16, "llama", True, None),
    ],
)
def test_the_kernel_depends_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    dtype: torch.dtype,
    family: str,
    works: bool,
    expected: str | None,
):
    """A T4, float32, and a kernel that fails its check use padded rows."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    monkeypatch.setattr(attention, "_self_test", lambda *_: None if works else "no compiler")
    config = a_model(family, torch.float32).config
    assert attention._choose(config, torch.device("cuda:0"), dtype)[0] == expected


def a_varlen_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    starts_of_keys: torch.Tensor,
    longest: int,
    longest_of_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """The documented behaviour of PyTorch's kernel, with one mask for all: tokens by heads by head size."""
    assert starts is starts_of_keys  # cuDNN asks for it
    assert longest == longest_of_keys == int(starts.diff().max())
    assert starts.dtype is torch.int32
    at = torch.arange(len(query))
    row = torch.bucketize(at, starts[1:], right=True)
    before = at[:, None] - at
    left, right = window_size
    seen = (row[:, None] == row) & (before >= -right) & ((before <= left) if left >= 0 else True)
    heads_first = [tensor.transpose(0, 1) for tensor in (query, key, value)]
    out = scaled_dot_product_attention(*heads_first, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
    return out.transpose(0, 1)


@pytest.mark.parametrize("family", ["gemma3_text", "llama", "mistral"])
def test_the_gpu_kernel_gets_the_documented_arguments(monkeypatch: pytest.MonkeyPatch, family: str):
    """Shapes, windows, scale and shared heads are those of PyTorch's documentation."""
    monkeypatch.setattr(attention, "varlen_attn", a_varlen_kernel)
    model = a_model(family, torch.float64)
    batch = passes.make(some_rows(), CPU, padded=False)
    found = []
    for name in ("tunemill_by_row", "tunemill_varlen"):
        model.set_attn_implementation(name)
        found.append(computed(model, batch))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert off(found[1][2], found[0][2]) < 1e-6


@pytest.mark.parametrize("window", [None, WINDOW])
def test_flex_attention_is_equivalent_for_soft_capped_scores(monkeypatch: pytest.MonkeyPatch, window: int | None):
    """Mask, cap and shared heads; on a CPU only the forward pass is available."""
    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, sum(LENGTHS), 16, generator=generator, dtype=torch.float64) for heads in (4, 2, 2)
    )
    settings = {"rows": Rows.of(LENGTHS, CPU), "scaling": 0.5, "softcap": 2.0, "sliding_window": window}
    one, _ = attention._flex(None, query, key, value, None, **settings)
    other, _ = attention._by_row(None, query, key, value, None, **settings)
    assert torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def blind_to_rows(*arguments: Any, rows: Rows, **settings: Any) -> Any:
    """A kernel that ignores the borders of rows."""
    return attention._by_row(*arguments, rows=Rows.of((sum(rows.lengths),), rows.starts.device), **settings)


def blind_to_windows(*arguments: Any, **settings: Any) -> Any:
    """A kernel that ignores the sliding window."""
    return attention._by_row(*arguments, **{**settings, "sliding_window": None})


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (attention._by_row, None),
        (attention._varlen, "Error"),
        (blind_to_rows, "differ by up to"),
        (blind_to_windows, "differ by up to"),
    ],
)
def test_a_kernel_is_checked_before_it_is_used(kernel: attention.Attention, fault: str | None):
    """A kernel that raises, like PyTorch's on CPUs, or gives other results is detected."""
    config = a_model("gemma3_text", torch.float32).config
    found = attention._self_test(kernel, config, CPU, torch.bfloat16)
    assert found is None if fault is None else fault in str(found)


def test_mixed_precision_applies_to_the_kernel(monkeypatch: pytest.MonkeyPatch):
    """The float32 weights of head norms, as in Qwen 3, do not make its inputs float32."""
    seen = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        seen.append({query.dtype, key.dtype, value.dtype})
        return a_varlen_kernel(query, key, value, *rest, **settings)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    model = a_model("qwen3", torch.float32)
    model.set_attn_implementation("tunemill_varlen")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss.score_at_once(model, passes.make(some_rows(), CPU, padded=False))
    assert seen == [{torch.bfloat16}] * 3


@pytest.mark.parametrize("family", ["gemma2", "qwen3"])
@pytest.mark.parametrize("score", [loss.score_at_once, loss.score_in_tiles])
@pytest.mark.parametrize("attend", ["tunemill_by_row", "tunemill_varlen"])
def test_a_pass_has_no_host_sync(family: str, score: loss.Score, attend: str):
    """Forward and backward passes work with fake tensors, which have no values."""
    rows = some_rows((10, 6))
    with FakeTensorMode():
        model = a_model(family, torch.float32)
        model.set_attn_implementation(attend)
        scores = score(model, passes.make(rows, CPU, padded=False))
        scores.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        with pytest.raises(DataDependentOutputException):
            float(scores.loss.detach())


AFTER_THE_HEAD = ["gemma2", "granite", "llama"]
"""Families with a soft cap, a factor, and neither."""


def are_the_same(at_once: Any, in_tiles: Any) -> None:
    """Compare loss, number of right tokens and gradient."""
    assert in_tiles[0] == pytest.approx(at_once[0], rel=1e-5)
    assert in_tiles[1] == at_once[1]
    assert off(torch.as_tensor(in_tiles[2]), torch.as_tensor(at_once[2])) < 1e-4


@pytest.mark.parametrize("family", AFTER_THE_HEAD)
def test_the_losses_for_cpu_and_gpu_are_equal(monkeypatch: pytest.MonkeyPatch, family: str):
    """Whatever follows the output head."""
    monkeypatch.setattr(loss, "_VOCABULARY_TILE", loss._VOCABULARY_TILE)
    are_the_same(*both_losses(family))


def test_the_losses_for_cpu_and_gpu_are_equal_with_gpu_kernels(monkeypatch: pytest.MonkeyPatch):
    """TRL's Triton kernels run on a CPU in Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for pair in in_own_process(both_losses_with_kernels, AFTER_THE_HEAD).result():
        are_the_same(*pair)


@pytest.mark.parametrize("score", [loss.score_at_once, loss.score_in_tiles])
def test_a_pass_without_a_supervised_token_has_zero_loss(score: Callable[..., loss.Scores]):
    """Its gradients are zero too."""
    model = a_model("llama", torch.float32)
    found = computed(model, passes.make(some_rows((1, 3)), CPU, padded=True), score)
    assert found[:2] == (0.0, 0)
    assert not found[2].any()

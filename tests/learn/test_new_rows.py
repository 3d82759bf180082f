"""Rows of new tokens: the losses and gradients of PEFT's own layer, without its copies of the vocabulary matrix."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModelForCausalLM, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)
from tunemill_trainer.learn import loss, new_rows, passes
from tunemill_trainer.learn.trainer import load_trainable, save_trainable
from tunemill_trainer.release import merged

VOCABULARY, WIDTH = 200, 32
NEW = [197, 199, 198]
"""Out of order, as nothing promises that the ids of new tokens follow each other."""
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "gemma2": Gemma2Config(**SIZE, head_dim=8, final_logit_softcapping=2.0),
    "gemma3": Gemma3TextConfig(**SIZE, head_dim=8),
    "granite": GraniteConfig(**SIZE, logits_scaling=4.0, embedding_multiplier=3.0),
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=8),
}
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def a_base(family: str, *, tied: bool) -> Any:
    """A model with random weights, the same at every call."""
    config = FAMILIES[family]
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def wrapped(base: Any, *, in_place: bool, tied: bool) -> Any:
    """The base model with an adapter whose new rows are already trained."""
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    torch.manual_seed(1)
    model = get_peft_model(
        base,
        LoraConfig(
            r=4,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            trainable_token_indices=dict.fromkeys(names, NEW),
        ),
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape) * ("token_adapter" in name or "lora_B" in name)
            parameter.data = parameter.data.float() + 0.1 * noise
    if in_place:
        new_rows.use_in_place(model)
    return model


def a_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels; new tokens are read and learnt, and others are learnt where they could have stood."""
    ids = torch.randint(1, 190, (3, 12), generator=torch.Generator().manual_seed(2))
    ids[:, 2::4] = torch.tensor(NEW)
    labels = ids.clone()
    labels[:, :4] = -100
    return ids, labels


def loss_of(model: Any, *, fused: bool) -> torch.Tensor:
    """The loss, by the head for GPUs or by the model's own."""
    ids, labels = a_batch()
    if fused:
        rows = [{"input_ids": row, "labels": label} for row, label in zip(ids.tolist(), labels.tolist(), strict=True)]
        return loss.score_in_tiles(model, passes.make(rows, torch.device("cpu"), padded=True)).loss
    return model(input_ids=ids, labels=labels, num_items_in_batch=1).loss


def gradients(model: Any) -> dict[str, torch.Tensor]:
    """By the name of the parameter."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], share: float) -> None:
    """Check that gradients differ by no more than this share of the largest of their parameter."""
    assert ours.keys() == theirs.keys()
    assert any("trainable_tokens_delta" in name for name in theirs)
    for name, gradient in theirs.items():
        assert float(gradient.abs().max()) > 0, name
        assert float((ours[name] - gradient).abs().max()) <= share * float(gradient.abs().max()), name


class Counted(TorchDispatchMode):
    """Counts kernels, the bytes of what they return, and those that return a whole vocabulary matrix."""

    _VIEWS = frozenset({"alias", "detach", "expand", "select", "slice", "t", "transpose", "unsqueeze", "view"})

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0
        self.matrices: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        name = function.__name__.split(".")[0]
        in_place = name.endswith("_") and not name.endswith("__")
        if name not in self._VIEWS:
            self.kernels += 1
            if isinstance(result, torch.Tensor) and not in_place:
                self.bytes += result.numel() * result.element_size()
                if result.shape in {(VOCABULARY, WIDTH), (WIDTH, VOCABULARY)}:
                    self.matrices[name] += 1
        return result


@TIED
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fused", [False, True], ids=["whole head", "fused head"])
def test_losses_and_gradients_equal_those_of_pefts_layer(family: str, tied: bool, fused: bool):
    """With soft caps and scales of logits and of embeddings, and with tied and untied heads."""
    ours, theirs = (wrapped(a_base(family, tied=tied), in_place=in_place, tied=tied) for in_place in (True, False))
    losses = []
    for model in (ours, theirs):
        loss = loss_of(model, fused=fused)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert_close(gradients(ours), gradients(theirs), 1e-5)


@TIED
def test_updated_rows_are_used_in_the_next_pass(tied: bool):
    """A run of several steps with several passes each equals PEFT's."""
    runs = []
    for in_place in (True, False):
        model = wrapped(a_base("gemma2", tied=tied), in_place=in_place, tied=tied)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
        losses = []
        for _ in range(4):
            for fused in (True, False):
                loss = loss_of(model, fused=fused)
                loss.backward()
                losses.append(float(loss.detach()))
            optimizer.step()
            optimizer.zero_grad()
        runs.append(losses)
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert runs[0][-1] < runs[0][0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True], ids=["whole head", "fused head"])
def test_a_16_bit_base_model_uses_rounded_rows(dtype: torch.dtype, fused: bool):
    """Rows of 32 bits are rounded as by PEFT, and gradients differ by rounding only."""
    models = [
        wrapped(a_base("gemma2", tied=True).to(dtype), in_place=in_place, tied=True) for in_place in (True, False)
    ]
    losses = []
    for model in models:
        with torch.autocast("cpu", dtype):
            loss = loss_of(model, fused=fused)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == losses[1]
    rows = [
        next(gradient for name, gradient in gradients(model).items() if "trainable_tokens_delta" in name)
        for model in models
    ]
    assert rows[0].dtype is torch.float32
    assert float((rows[0] - rows[1]).norm()) < 0.02 * float(rows[1].norm())


def test_activation_checkpointing_changes_no_result():
    """Recomputation in the backward pass uses the same rows."""
    results = []
    for checkpointing in (False, True):
        model = wrapped(a_base("gemma3", tied=True), in_place=True, tied=True).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        loss_of(model, fused=True).backward()
        results.append(gradients(model))
    assert_close(*results, 1e-6)


@TIED
@pytest.mark.parametrize("fused", [False, True], ids=["whole head", "fused head"])
def test_no_vocabulary_matrix_is_allocated(tied: bool, fused: bool):
    """PEFT's layer allocates several during training."""
    counted = {}
    for in_place in (True, False):
        model = wrapped(a_base("gemma2", tied=tied), in_place=in_place, tied=tied)
        with Counted() as count:
            loss_of(model, fused=fused).backward()
        counted[in_place] = count
    assert counted[True].matrices.total() == 0
    assert counted[False].matrices.total() >= 4
    assert counted[True].bytes + 3 * 4 * VOCABULARY * WIDTH <= counted[False].bytes
    assert counted[True].kernels <= counted[False].kernels + 20


@TIED
def test_a_decoded_token_has_the_cost_of_the_base_model(tied: bool, tmp_path: Path):
    """The rows are loaded into the matrix: no additional kernel, and PEFT's own logits."""
    trained = wrapped(a_base("gemma2", tied=tied), in_place=True, tied=tied)
    trained.save_pretrained(tmp_path, save_embedding_layers=False)
    theirs = PeftModelForCausalLM.from_pretrained(a_base("gemma2", tied=tied), tmp_path).eval()
    ours = PeftModelForCausalLM.from_pretrained(a_base("gemma2", tied=tied), tmp_path).eval()
    new_rows.write_for_inference(ours)
    bare = get_peft_model(
        a_base("gemma2", tied=tied), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    ids = a_batch()[0]
    counts = []
    for model in (ours, bare, theirs):
        with torch.inference_mode(), Counted() as count:
            logits = model(input_ids=ids).logits
        counts.append(count)
        if model is ours:
            expected = logits
    assert torch.equal(logits, expected)
    assert (counts[0].kernels, counts[0].bytes) == (counts[1].kernels, counts[1].bytes)
    assert counts[2].matrices.total() > 0


@TIED
def test_the_saved_adapter_equals_that_of_peft(tied: bool, tmp_path: Path):
    """AutoPeft loads it, it can be merged, and a checkpoint restores the rows."""
    base = a_base("gemma2", tied=tied)
    base.save_pretrained(tmp_path / "base")
    model = wrapped(base, in_place=True, tied=tied)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    ids = a_batch()[0]
    loss_of(model, fused=True).backward()
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert float((loaded(input_ids=ids).logits - expected).abs().max()) < 1e-6

        save_trainable(model, tmp_path / "checkpoint")
        again = wrapped(a_base("gemma2", tied=tied), in_place=True, tied=tied).eval()
        for parameter in again.parameters():
            if parameter.requires_grad:
                parameter.zero_()
        load_trainable(again, tmp_path / "checkpoint")
        assert torch.equal(again(input_ids=ids).logits, expected)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, a_base("gemma2", tied=tied).eval()(input_ids=ids).logits)

        new_rows.write_for_inference(loaded)
        for one in (again, loaded):
            whole = merged.merge(one)
            assert float((whole(input_ids=ids).logits - expected).abs().max()) < 1e-5

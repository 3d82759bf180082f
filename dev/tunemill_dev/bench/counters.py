"""Counts GPU costs of training and decoding without a GPU: `python -m tunemill_dev.bench.counters`.

Tiny models of the real architectures run the steps that `tunemill_dev.bench.train` times. Per optimizer step:

- kernels: operators that PyTorch dispatches, without views. Each costs the host a launch. Attention over concatenated
  rows is one kernel on a GPU, but one per row here.
- syncs: how often the host reads a value, for which it would wait for the GPU.
- passes, the share of padding in them, and the bytes copied to the device.

A test sets limits for Tunemill, so that no change makes them worse unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import accelerate.data_loader
import torch
from peft import get_peft_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback
from tunemill_trainer.judge.generate import Decoding, generate
from tunemill_trainer.learn import passes

from tunemill_dev.bench.train import (
    TRL_BATCH,
    Rows,
    adapter_for,
    agents_course_rows,
    ours,
    trl_defaults,
    tutorial,
)

FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral", "phi", "qwen2", "qwen3")
_ROWS = 16
_MEDIAN = 70
"""A tenth of the lengths of the agents-course rows."""
_VOCABULARY = 512
_NEW_TOKENS = 8
_READS = frozenset({"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal"})
"""Operators whose result, or its shape, the host reads."""
_VIEWS = frozenset({"detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh"})
"""Operators that launch no kernel, although their schemas do not show it."""


class Counter(TorchDispatchMode):  # type: ignore[misc] # torch ships no types for it
    """Counts the operators that are dispatched inside its context.

    Attributes:
        kernels: operators that compute something.
        syncs: operators for which the host would wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Count the operator and run it."""
        # In inference mode, composite operators are not split into their parts.
        with self:
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = func.__name__.split(".")[0]
        self.kernels += not (func.is_view or name in _VIEWS)
        self.syncs += name in _READS or (name in ("index", "index_put", "index_put_") and _by_mask(args[1]))
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):  # type: ignore[misc]
    """Counts accesses that return tensor values to Python without an operator."""

    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self._counter.syncs += func in (torch.Tensor.tolist, torch.Tensor.numpy)
        return func(*args, **(kwargs or {}))


class Watch(TrainerCallback):  # type: ignore[misc]
    """Counts the costs of the optimizer steps of a training, without the time between them, such as loading rows.

    Operators are counted from the second step on, because the first step creates the optimizer's state.

    Args:
        model: the inputs of its embedding show how many tokens are computed.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.counter = Counter()
        self.steps = self.passes = self.computed = self.copied = 0
        self._open = ExitStack()
        model.get_input_embeddings().register_forward_pre_hook(self._count_pass)

    def _count_pass(self, _embedding: object, arguments: tuple[torch.Tensor, ...]) -> None:
        self.passes += 1
        self.computed += arguments[0].numel()

    def on_train_begin(self, *_: object, **__: object) -> None:
        """Do nothing: setup is not counted."""

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Start to count."""
        if not self.steps:
            return
        self._open.enter_context(_Copies(self.counter))
        self._open.enter_context(self.counter)

    def on_step_end(self, *_: object, **__: object) -> None:
        """Count no more."""
        self._open.close()
        self.steps += 1

    def on_train_end(self, *_: object, **__: object) -> None:
        """Do nothing."""

    @contextmanager
    def watching_copies(self) -> Iterator[None]:
        """Count the bytes that accelerate's data loader, or Tunemill's forward pass, copies to the device."""
        send, make = accelerate.data_loader.send_to_device, passes.make

        def counted_send(batch: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
            tensors = batch.values() if isinstance(batch, dict) else ()
            self.copied += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
            return send(batch, *arguments, **named)

        def counted_make(*arguments: Any, **named: Any) -> passes.Pass:  # noqa: ANN401
            made = make(*arguments, **named)
            self.copied += made.copied
            return made

        with (
            patch.object(accelerate.data_loader, "send_to_device", counted_send),
            patch.object(passes, "make", counted_make),
        ):
            yield


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Return the counters by model family and training loop."""
    return {family: {**of_training(family), "decode": of_decoding(family)} for family in FAMILIES}


def of_training(family: str, loops: tuple[str, ...] = ("ours", "trl_defaults", "tutorial")) -> dict[str, Any]:
    """Return the average costs of an optimizer step of each loop; kernels also per thousand tokens."""
    rows = agents_course_rows(_ROWS, _MEDIAN, _VOCABULARY)
    known: dict[str, tuple[str, Callable[[Any, Watch], None]]] = {
        "ours": ("sdpa", lambda model, watch: ours(model, rows, TRL_BATCH, watch)),
        "trl_defaults": ("sdpa", lambda model, watch: trl_defaults(model, rows, watch)),
        "tutorial": ("eager", lambda model, watch: tutorial(model, rows, watch)),
    }
    found = {}
    for loop in loops:
        attention, run = known[loop]
        model = a_model(family, attention)
        watch = Watch(model)
        with watch.watching_copies():
            run(model, watch)
        if loop == "tutorial":  # this loop copies token ids itself
            watch.copied = sum(8 * len(row["input_ids"]) for row in rows)
        found[loop] = _figures(watch, rows)
    return found


def of_decoding(family: str) -> dict[str, float]:
    """Return the costs per generated token of a batch of 4 with a LoRA adapter, including the prompts."""
    model = a_model(family, "sdpa")
    tuned = get_peft_model(model, adapter_for(model, 0)).eval()
    prompts = [row["input_ids"] for row in agents_course_rows(4, _MEDIAN, _VOCABULARY)]
    counter = Counter()
    with _Copies(counter), counter:
        generate(
            tuned,
            prompts,
            Decoding((_VOCABULARY,), 0, _NEW_TOKENS),
            check_stop=lambda: None,
            on_progress=lambda _: None,
        )
    generated = len(prompts) * _NEW_TOKENS
    return {"kernels_per_token": counter.kernels / generated, "syncs_per_token": counter.syncs / generated}


def a_model(family: str, attention: str) -> Any:  # noqa: ANN401 - transformers ships no types
    """Return a model of two layers with the architecture of a family and random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=_VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    # Only eager attention supports Gemma 2's soft cap.
    attention = "eager" if family == "gemma2" else attention
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def _figures(watch: Watch, rows: Rows) -> dict[str, float]:
    tokens = sum(len(row["input_ids"]) for row in rows)
    kernels, syncs = (count / (watch.steps - 1) for count in (watch.counter.kernels, watch.counter.syncs))
    return {
        "rows_per_step": len(rows) / watch.steps,
        "passes_per_step": watch.passes / watch.steps,
        "kernels_per_step": round(kernels, 1),
        "kernels_per_1000_tokens": round(1000 * kernels * watch.steps / tokens, 1),
        "padding": round(1 - tokens / watch.computed, 3),
        "syncs_per_step": round(syncs, 2),
        "bytes_copied_per_token": round(watch.copied / tokens, 1),
    }


def _by_mask(indices: Any) -> bool:  # noqa: ANN401
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))

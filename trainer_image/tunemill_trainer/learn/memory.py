"""Estimates the GPU memory of train and evaluate from a model's configuration, without weights and without a GPU.

Weights, gradients and optimizer state follow from the number of parameters. Activations are measured instead of being
derived from a formula for each architecture: the model's own code runs forward and backward on tensors without storage
(`FakeTensorMode`), and a dispatch mode adds up the storages that are alive. Decoder layers with the same parameters use
the same memory, so one layer of each kind is run and its result is multiplied.

Bytes for each weight or parameter, with sources:

- weights in BF16, FP16 or FP32: 2 or 4
- NF4 with double quantisation: 0.5, one byte for 64 weights and four for 16,384 (QLoRA, arXiv:2305.14314, 2.2)
- Int8: 1, and four for each output row (LLM.int8(), arXiv:2208.07339, 2.1)
- trained parameters, their gradients and the two moments of AdamW: 4 + 4 + 8, as `sft` keeps them in FP32
- AdaLoRA: 12 more for the importance of each parameter and its two averages (arXiv:2303.10512, 3.2)
- method Full, when that does not fit: BF16 weights and gradients, and 8-bit moments (arXiv:2110.02861): 2 + 2 + 2
- 16-bit copies of the trained parameters, which autocast caches until the forward pass ends: 2
- key-value cache: `judge.cache_size`
- fused output head: tiles of 4,096 tokens by 32,768 words, and the gradient of the hidden states in FP32 (TRL 1.16,
  `trl/kernels/chunked_logprob.py`)
- attention: the fused kernels keep queries, keys, values, outputs and one FP32 number for each head and token
  (FlashAttention-2, arXiv:2307.08691, 3.1); eager attention keeps the scores
"""

import copy
import json
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from tunemill_api.finetune import FineTuneSpec, Quantization
from tunemill_api.training import AdapterMethod, Precision

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.cache_size import CacheSize, cache_size
from tunemill_trainer.learn.adapter import adapter_config
from tunemill_trainer.learn.language_part import auto_class, prefix_of
from tunemill_trainer.learn.memory_plan import (
    MOST_LAYERS,
    Estimate,
    Lengths,
    MemoryMode,
    Need,
    UnknownMemoryError,
)
from tunemill_trainer.prepared import Tokens

_FUSED = "fused-memory"
"""The name under which the model of a fused attention kernel is registered with Transformers."""
_TOKEN_TILE, _WORD_TILE = 4096, 32_768
_CONTEXT = 600 << 20
"""CUDA context, kernels and the workspaces of cuBLAS: 400 to 700 MiB, depending on GPU and driver."""
_STEPS = 100
"""AdaLoRA's configuration needs a number of steps; its memory does not depend on it."""
_NO_NEW_TOKENS = Tokens("Reuse", (), (), 0, 0)
_CHECKPOINTED = {MemoryMode.NONE: 0.0, MemoryMode.SELECTIVE: 0.5, MemoryMode.FULL: 1.0, MemoryMode.ONE_ROW: 1.0}
"""The fraction of layers that store only their input."""


def estimate(
    config: PreTrainedConfig, spec: FineTuneSpec, added: int, lengths: Lengths, *, fused: bool = True
) -> Estimate:
    """Return the memory that train and evaluate need.

    Args:
        config: configuration of the base model.
        spec: has method, quantization, precision and more.
        added: number of tokens added to the vocabulary.
        lengths: of the rows.
        fused: whether attention and dropout use the kernels of a GPU; false for those of a CPU.

    Raises:
        UnknownMemoryError: the model's code does not run on tensors without storage.
        StageError: InvalidSpec, for the adapter's settings.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()

    if text.num_hidden_layers > MOST_LAYERS:
        raise UnknownMemoryError(f"its config.json has {text.num_hidden_layers} layers")
    text.vocab_size += added
    compute = torch.float32 if spec.training.precision is Precision.FP32 else torch.bfloat16
    try:
        shape = _Shape.of(config, spec, added, compute, fused=fused)
        passes, reading = _measure(shape, lengths.longest, compute)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, IndexError) as error:
        raise UnknownMemoryError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    rows = max(lengths.pass_tokens // lengths.longest, 1)
    full = spec.adapter.method is AdapterMethod.FULL
    needs = []
    for fixed in _fixed(shape, spec.adapter.method, compute):
        for mode in MemoryMode:
            count = 1 if mode is MemoryMode.ONE_ROW else rows
            activations, backward = passes.activations(count, _CHECKPOINTED[mode])
            head = _head_bytes(shape, count * lengths.longest, lengths.supervised, compute)
            # The buffers of the head are freed before the backward pass of the layers, so only the larger one counts.
            temporary = {"output head": head} if head > backward else {"backward pass": backward}
            parts = {**fixed, "activations": activations, **temporary, "CUDA context": _CONTEXT}
            needs.append(Need(mode, parts, compact=full and fixed["weights"] < shape.weights))

    answering = {
        "weights": shape.published_weights,
        "adapter": 0 if full else 4 * shape.trained,
        "CUDA context": _CONTEXT,
        "key-value cache": shape.cache.cache(lengths.longest + lengths.answer),
        "forward pass": reading.at(1),
        # For one position, in the model's number format and in FP32.
        "logits": shape.vocabulary * (compute.itemsize + 4),
    }
    return Estimate(shape.parameters, train=tuple(needs), evaluate=(Need(MemoryMode.ONE_ROW, answering),))


@dataclass(frozen=True)
class _Group:
    """Decoder layers with the same parameters: one of them, and how many there are."""

    layer: nn.Module
    count: int


@dataclass(frozen=True)
class _Shape:
    """A model with one layer of each kind, and figures of the complete model.

    Attributes:
        model: the model on tensors without storage, with its trained parameters in FP32.
        parameters: number of weights of the base model.
        groups: the kinds of layers.
        weights: bytes of the base model as loaded by train.
        published_weights: bytes of the model as loaded by evaluate.
        trained: number of trained parameters.
        vocabulary: rows of the output head.
        width: size of the hidden states.
        head_trained: whether the full output head is trained.
        cache: the key-value cache in evaluate.
    """

    model: Any
    parameters: int
    groups: tuple[_Group, ...]
    weights: int
    published_weights: int
    trained: int
    vocabulary: int
    width: int
    head_trained: bool
    cache: CacheSize

    @classmethod
    def of(
        cls, config: PreTrainedConfig, spec: FineTuneSpec, added: int, compute: torch.dtype, *, fused: bool
    ) -> "_Shape":
        """Build the model and its adapter on the meta device."""
        full = spec.adapter.method is AdapterMethod.FULL
        with torch.device("meta"):
            model = auto_class(config.to_dict()).from_config(config, dtype=torch.float32 if full else compute)
        if fused and model.config.get_text_config()._attn_implementation != "eager":  # noqa: SLF001 - no other name
            AttentionInterface.register(_FUSED, _fused_attention)
            model.set_attn_implementation(_FUSED)
        parameters = model.num_parameters()
        cache = cache_size(model)
        cache = replace(cache, token=cache.token * compute.itemsize // model.dtype.itemsize)
        name, kinds = _keep_one_layer_of_each_kind(model)
        weights = _scaled(model, name, kinds, lambda module: _weight_bytes(module, spec.base_model.quantization, model))
        published = weights if not full else weights * compute.itemsize // 4
        if spec.base_model.quantization is not Quantization.NONE:
            _quantise(model, keeps_inputs=spec.base_model.quantization is Quantization.INT8)
        head = model.get_output_embeddings()
        # The rows of added tokens are trained in place (`new_rows`), so PEFT's layer for them is not counted.
        rows = 0 if full else added * (1 if head.weight is model.get_input_embeddings().weight else 2)
        adapter = adapter_config(spec.adapter, model, _NO_NEW_TOKENS, _STEPS)
        if adapter is not None:
            with torch.device("meta"):
                model = get_peft_model(model, adapter)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if fused:
            _use_gpu_dropout(model)
        base = model.get_base_model() if adapter is not None else model
        layers = base.get_submodule(name)
        return cls(
            model=model,
            parameters=parameters,
            groups=tuple(_Group(layer, count) for layer, count in zip(layers, kinds, strict=True)),
            weights=weights,
            published_weights=published,
            trained=_scaled(base, name, kinds, _trained) + rows * head.weight.shape[1],
            vocabulary=head.weight.shape[0],
            width=head.weight.shape[1],
            head_trained=head.weight.requires_grad,
            cache=cache,
        )


def _keep_one_layer_of_each_kind(model: Any) -> tuple[str, list[int]]:  # noqa: ANN401 - transformers ships no types
    """Remove all but one decoder layer of each kind; return the name of the list and the original count per kind."""
    config = model.config.get_text_config()
    prefix = prefix_of(model)
    name, layers = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers and name.startswith(prefix)
    )
    types = getattr(config, "layer_types", None) or [""] * len(layers)
    kinds: dict[tuple[str, object], list[nn.Module]] = {}
    for kind, layer in zip(types, layers, strict=True):
        shapes = tuple((part, tuple(parameter.shape)) for part, parameter in layer.named_parameters())
        kinds.setdefault((kind, shapes), []).append(layer)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.ModuleList([same[0] for same in kinds.values()]))
    config.num_hidden_layers = len(kinds)
    if getattr(config, "layer_types", None):
        config.layer_types = [key[0] for key in kinds]
    return name, [len(same) for same in kinds.values()]


def _scaled(model: Any, name: str, counts: list[int], measure: Callable[[nn.Module], int]) -> int:  # noqa: ANN401
    """Return a measure of the complete model from the model with one layer of each kind."""
    layers = [measure(layer) for layer in model.get_submodule(name)]
    rest = measure(model) - sum(layers)
    return rest + sum(one * count for one, count in zip(layers, counts, strict=True))


def _trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _weight_bytes(module: nn.Module, quantization: Quantization, model: Any) -> int:  # noqa: ANN401
    """Return the bytes of a module's weights. All linear layers except the head are quantized, as by bitsandbytes."""
    head = model.get_output_embeddings()
    quantised = {
        id(part.weight): part.weight
        for part in module.modules()
        if isinstance(part, nn.Linear) and part is not head and quantization is not Quantization.NONE
    }
    total = 0
    for weight in module.parameters():
        numbers: int = weight.numel()
        if id(weight) not in quantised:
            total += numbers * weight.itemsize
        elif quantization is Quantization.INT8:
            total += numbers + 4 * weight.shape[0]
        else:
            total += numbers // 2 + numbers // 64 + 4 * (numbers // 16_384)
    return total


def _fixed(shape: _Shape, method: AdapterMethod, compute: torch.dtype) -> list[dict[str, int]]:
    """Return the parts that do not depend on the rows; for the method Full also in the compact format."""
    trained, full = shape.trained, method is AdapterMethod.FULL
    wide = {
        "weights": shape.weights,
        "trained parameters": 0 if full else 4 * trained,
        "gradients": 4 * trained,
        "optimizer": (8 + 12 if method is AdapterMethod.ADALORA else 8) * trained,
        "autocast copies": 2 * trained if compute is not torch.float32 else 0,
    }
    if not full or compute is torch.float32:
        return [wide]
    # BF16 weights and gradients, and one byte for each of the two moments, with a scale for each block of 256.
    compact = {"weights": 2 * trained, "gradients": 2 * trained, "optimizer": 2 * trained + 8 * (trained // 256)}
    return [wide, compact]


def _head_bytes(shape: _Shape, tokens: int, supervised: float, compute: torch.dtype) -> int:
    """Return the temporary memory of the fused output head, for the supervised tokens of a pass."""
    scored = int(tokens * supervised) + 1
    size: int = compute.itemsize
    tile = min(scored, _TOKEN_TILE) * _WORD_TILE * size
    hidden = scored * shape.width * (size + 4)
    trained = 4 * shape.vocabulary * shape.width if shape.head_trained else 0
    return tile + hidden + trained


# The measurement


@dataclass(frozen=True)
class _Line:
    """Bytes as a linear function of the number of rows, from measurements with one row and with two."""

    one: int
    two: int

    def at(self, rows: int) -> int:
        """Return the bytes for a number of rows."""
        return self.one + (self.two - self.one) * (rows - 1)

    @property
    def slope(self) -> int:
        """Return the bytes per row, without constant parts such as the copies of autocast."""
        return self.two - self.one


@dataclass(frozen=True)
class _Passes:
    """Memory of the forward and backward passes.

    Attributes:
        groups: number of layers of each kind, and what one of them stores for the backward pass.
        rest: what embedding, norms and rotary positions store.
        hidden: bytes of the hidden states between two layers.
        backward: temporary memory of the backward pass, in addition to what the forward pass stored.
    """

    groups: tuple[tuple[int, _Line], ...]
    rest: _Line
    hidden: int
    backward: _Line

    def activations(self, rows: int, checkpointed: float) -> tuple[int, int]:
        """Return the bytes stored for the backward pass, and the additional bytes during it.

        Args:
            rows: number of rows of the pass.
            checkpointed: fraction of layers that store only their input, and are recomputed one after the other.
        """
        layers = sum(count for count, _ in self.groups)
        kept = self.rest.slope + sum(count * line.slope for count, line in self.groups) * (1 - checkpointed)
        if checkpointed:
            kept += checkpointed * layers * self.hidden + max(line.slope for _, line in self.groups)
        return int(kept * rows), self.backward.at(rows)


def _measure(shape: _Shape, length: int, compute: torch.dtype) -> tuple[_Passes, _Line]:
    """Return the memory of training passes and of prompt processing, for rows of this length."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _without_memory(shape.model)
        for parameter in shape.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
        trained = [_train_pass(shape, rows, length, compute) for rows in (1, 2)]
        read = [_read_prompts(shape, rows, length, compute) for rows in (1, 2)]
    one, two = trained
    groups = tuple(
        (group.count, _Line(first, second))
        for group, first, second in zip(shape.groups, one.layers, two.layers, strict=True)
    )
    passes = _Passes(groups, _Line(one.rest, two.rest), one.hidden, _Line(one.backward, two.backward))
    return passes, _Line(*read)


@dataclass(frozen=True)
class _Pass:
    layers: tuple[int, ...]
    rest: int
    hidden: int
    backward: int


def _train_pass(shape: _Shape, rows: int, length: int, compute: torch.dtype) -> _Pass:
    shape.model.train()
    alive = _LiveBytes()
    before: list[int] = []
    after: list[int] = []
    hooks = []
    for group in shape.groups:
        hooks.append(group.layer.register_forward_pre_hook(lambda *_: before.append(alive.now)))
        hooks.append(group.layer.register_forward_hook(lambda *_: after.append(alive.now)))
    try:
        with alive:
            hidden = _hidden_states(shape.model, rows, length, compute)
            kept = alive.now
            torch.autograd.backward(hidden, torch.empty_like(hidden))
    finally:
        for hook in hooks:
            hook.remove()
    layers = tuple(end - start for start, end in zip(before, after, strict=True))
    return _Pass(layers, kept - sum(layers), hidden.nbytes, alive.peak - kept)


def _read_prompts(shape: _Shape, rows: int, length: int, compute: torch.dtype) -> int:
    shape.model.eval()
    with torch.no_grad(), _LiveBytes() as alive:
        _hidden_states(shape.model, rows, length, compute)
    peak: int = alive.peak
    return peak


def _hidden_states(model: Any, rows: int, length: int, compute: torch.dtype) -> torch.Tensor:  # noqa: ANN401
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros(rows, length, dtype=torch.long)
    mixed = torch.autocast("cpu", compute) if compute is not torch.float32 else nullcontext()
    with mixed:
        hidden: torch.Tensor = whole.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


class _LiveBytes(TorchDispatchMode):  # type: ignore[misc] # not followed by mypy
    """Counts the bytes of the storages that were allocated inside the block and are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        _types: object,
        arguments: tuple[Any, ...] = (),
        named: dict[str, Any] | None = None,
    ) -> object:
        result = operation(*arguments, **(named or {}))
        given = {id(tensor.untyped_storage()) for tensor in tree_iter((arguments, named)) if _is_tensor(tensor)}
        for tensor in tree_iter(result):
            if _is_tensor(tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _without_memory(model: nn.Module) -> None:
    """Replace meta tensors, which autocast does not support, by fake tensors."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):  # noqa: SLF001 - setattr would register them anew
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    trained = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if trained else empty
                tensors[name] = made[id(tensor)]


# Replacements for operations whose memory differs between GPU and CPU


class _FusedAttention(torch.autograd.Function):  # type: ignore[misc]
    """Allocates what a fused attention kernel allocates, without computing anything."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, _gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        query, key, value, _, _ = ctx.saved_tensors
        sums = torch.empty_like(query, dtype=torch.float32)  # the gradient of the queries is accumulated in FP32
        gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del sums
        return gradients


def _fused_attention(
    _module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


AttentionMaskInterface.register(_FUSED, lambda *_, **__: None)


class _Dropout(torch.autograd.Function):  # type: ignore[misc]
    """Stores one byte per element, as the GPU kernel does. The CPU kernel stores a full element."""

    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        ctx.save_for_backward(torch.empty_like(numbers, dtype=torch.bool))
        return torch.empty_like(numbers)

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return torch.empty_like(gradient)


class _GpuDropout(nn.Module):  # type: ignore[misc]
    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return _Dropout.apply(numbers) if self.training else numbers


def _use_gpu_dropout(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p:
                setattr(module, name, _GpuDropout())


class _QuantisedProduct(torch.autograd.Function):  # type: ignore[misc]
    """Allocates 16-bit weights temporarily in both passes; for Int8 it also stores its input (bitsandbytes)."""

    @staticmethod
    def forward(ctx: Any, numbers: torch.Tensor, weight: torch.Tensor, keeps_input: bool) -> torch.Tensor:  # noqa: ANN401
        ctx.weight, ctx.kept = weight, numbers if keeps_input else None
        return numbers.reshape(-1, numbers.shape[-1]).mm(_dense(weight, numbers).T).view(*numbers.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        rows = gradient.reshape(-1, gradient.shape[-1])
        return rows.mm(_dense(ctx.weight, gradient)).view(*gradient.shape[:-1], -1), None, None


def _dense(weight: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(weight, dtype=like.dtype)


class _QuantisedLinear(nn.Linear):  # type: ignore[misc]
    keeps_input = False

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            numbers = numbers.to(torch.get_autocast_dtype("cpu"))
        output: torch.Tensor = _QuantisedProduct.apply(numbers, self.weight, self.keeps_input)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _Int8Linear(_QuantisedLinear):
    keeps_input = True


def _quantise(model: Any, *, keeps_inputs: bool) -> None:  # noqa: ANN401
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head:
            module.__class__ = _Int8Linear if keeps_inputs else _QuantisedLinear
    # bitsandbytes freezes quantized weights.
    model.requires_grad_(requires_grad=False)


def main() -> None:
    """Serve `memory_plan.estimate_in_child`: read a request as JSON from stdin, write estimate or problem to stdout."""
    request = json.load(sys.stdin)
    try:
        config = AutoConfig.from_pretrained(request["folder"], trust_remote_code=False)
        spec = FineTuneSpec.model_validate(request["spec"])
        response = estimate(config, spec, request["added"], Lengths(**request["lengths"])).to_json()
    except (UnknownMemoryError, StageError, OSError, ValueError, KeyError) as error:
        response = {"problem": str(error) or type(error).__name__}
    print(json.dumps(response))


if __name__ == "__main__":
    main()

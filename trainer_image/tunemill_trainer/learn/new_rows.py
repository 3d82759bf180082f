"""Trains the embedding rows of added tokens without copying the embedding matrix or computing its full gradient.

PEFT's TrainableTokensLayer copies the full matrix, for embedding and head, in every forward pass and for every decoded
token, and autograd computes a gradient of the same size. Here the rows are written into the frozen matrix in place, and
the gradient is computed for these rows only.

Modules, parameters and saved files are those of PEFT; only the forward pass differs.
"""

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from trl.kernels import ChunkedLogProbFunction
from typing_extensions import override


def use_in_place(model: nn.Module) -> None:
    """Replace PEFT's layers for added tokens, if the model has any, by layers that train the rows in place.

    Args:
        model: a PEFT model with a trainable adapter.
    """
    for layer in _layers(model):
        layer.__class__ = RowsInPlace


def write_for_inference(model: nn.Module) -> None:
    """Write trained rows into the embedding matrix once, so that decoding is as fast as with the base model.

    Args:
        model: a PEFT model. Afterwards its adapter can be merged, but must not be trained or disabled.
    """
    for layer in _layers(model):
        layer.__class__ = RowsInPlace
        layer.write(layer.trainable_tokens_delta)
        # Marked as merged, PEFT forwards all calls to the base layer.
        layer.merged_adapters = list(layer.active_adapters)


class RowsInPlace(TrainableTokensLayer):  # type: ignore[misc] # peft ships no types
    """PEFT's layer for added tokens, which writes the rows into the frozen matrix before each use."""

    def write(self, rows: Any) -> None:  # noqa: ANN401
        """Write rows into the frozen matrix.

        Args:
            rows: by adapter, shape (k, width).
        """
        # Through `.data`, as autograd need not track this: tensors saved in a pass have the same values.
        matrix = self.base_layer.weight.data
        for adapter in self.active_adapters:
            matrix.index_copy_(0, self.ids(adapter), rows[adapter].detach().to(matrix))

    def ids(self, adapter: str) -> torch.Tensor:
        """Return the ids of the added tokens, shape (k,), on the device of the matrix."""
        device = self.base_layer.weight.device
        cached: dict[tuple[str, torch.device], torch.Tensor] = self.__dict__.setdefault("_ids", {})
        if (adapter, device) not in cached:
            cached[adapter, device] = torch.tensor(self.token_indices[adapter], device=device)
        return cached[adapter, device]

    @override
    def get_merged_weights(self, active_adapters: list[str]) -> torch.Tensor:
        """Return the frozen matrix with the rows written into it, shape (vocabulary, width)."""
        if self.merged:
            return self.base_layer.weight
        self.write(self.trainable_tokens_delta)
        weight = self.base_layer.weight
        # For LogProbs, whose only access to the rows is the matrix.
        weight.new_rows = [(self.trainable_tokens_delta[adapter], self.ids(adapter)) for adapter in active_adapters]
        return weight

    @override
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the rows permanently.

        Raises:
            ValueError: with `safe_merge`, when they are not all finite.
        """
        if self.merged:
            return
        rows = self.trainable_tokens_delta
        if safe_merge and not all(bool(torch.isfinite(rows[adapter]).all()) for adapter in self.active_adapters):
            raise ValueError("the rows of added tokens contain NaN or infinity: the adapter is damaged")
        self.write(rows)
        self.merged_adapters = list(self.active_adapters)

    @override
    def forward_adapters(
        self,
        x: torch.Tensor,
        active_adapters: list[str],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Call the base layer, and connect the rows to the result for autograd.

        Args:
            x: token ids for an embedding, hidden states for a head.
            active_adapters: the adapters whose rows are used.
            args: arguments of the base layer.
            kwargs: arguments of the base layer.
        """
        if self.merged:
            return self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            self.write(self.trainable_tokens_original)
            return self.base_layer(x, *args, **kwargs)
        self.write(self.trainable_tokens_delta)
        result = self.base_layer(x, *args, **kwargs)
        for adapter in active_adapters:
            rows, ids = self.trainable_tokens_delta[adapter], self.ids(adapter)
            if isinstance(self.base_layer, nn.Embedding):
                result = _EmbeddedRows.apply(result, x, rows, ids, self._get_embed_scale())
            else:
                result = _HeadRows.apply(result, x, rows, ids)
        return result


class _EmbeddedRows(torch.autograd.Function):  # type: ignore[misc]
    """Returns an embedding's result unchanged. The gradient of a row is the sum over the positions of its token.

    Arguments: the result (…, width), the token ids (…), the rows (k, width), their ids (k), the embedding's scale or
    None.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        result: torch.Tensor,
        tokens: torch.Tensor,
        rows: torch.Tensor,
        ids: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(tokens, ids, scale)
        ctx.dtype = rows.dtype
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        tokens, ids, scale = ctx.saved_tensors
        one_hot = (ids.unsqueeze(1) == tokens.reshape(-1)).to(gradient.dtype)
        of_rows = (one_hot @ gradient.reshape(-1, gradient.shape[-1])).to(ctx.dtype)
        return None, None, of_rows if scale is None else of_rows * scale.to(ctx.dtype), None, None


class _HeadRows(torch.autograd.Function):  # type: ignore[misc]
    """Returns logits unchanged. The gradient of a row is the hidden states weighted by the gradients of its logit.

    Arguments: the logits (…, vocabulary), the hidden states (…, width), the rows (k, width), their ids (k).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        logits: torch.Tensor,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        ids: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, ids)
        ctx.dtype = rows.dtype
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        hidden, ids = ctx.saved_tensors
        of_logits = gradient.index_select(-1, ids).reshape(-1, len(ids))
        of_rows = of_logits.t() @ hidden.reshape(-1, hidden.shape[-1]).to(of_logits.dtype)
        return gradient, None, of_rows.to(ctx.dtype), None


class LogProbs(ChunkedLogProbFunction):  # type: ignore[misc] # trl ships no types
    """TRL's function for its fused output head, with the gradient of added rows if the head has any."""

    @classmethod
    @override
    def apply(cls, hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        new_rows = getattr(weight, "new_rows", [])
        if not new_rows:
            return ChunkedLogProbFunction.apply(hidden, weight, *rest)
        assert len(new_rows) == 1, "PEFT allows one adapter with added rows"
        return super().apply(hidden, weight, *rest, *new_rows[0])

    @staticmethod
    @override
    def forward(ctx: Any, *arguments: Any) -> Any:
        *original, rows, ids = arguments
        ctx.ids, ctx.dtype = ids, rows.dtype
        return ChunkedLogProbFunction.forward(ctx, *original)

    @staticmethod
    @override
    def backward(ctx: Any, of_log_probs: torch.Tensor | None, of_entropy: torch.Tensor | None, *others: Any) -> Any:
        original = ChunkedLogProbFunction.backward(ctx, of_log_probs, of_entropy, *others)
        assert of_entropy is None, "the gradient of added rows supports log-probabilities only"
        if of_log_probs is None:
            return (*original, None, None)
        hidden, weight, bias, targets, log_z, _ = ctx.saved_tensors
        settings, ids = ctx.kernel_args, ctx.ids
        hidden = hidden.to(ctx.compute_dtype)
        logits = hidden @ weight[ids].to(ctx.compute_dtype).t()
        if bias is not None:
            logits = logits + bias[ids].to(ctx.compute_dtype)
        logits = logits.float() * settings["logit_scale"]
        slope = settings["logit_scale"] * settings["inv_t"]
        if settings["HAS_SOFTCAP"]:
            squashed = torch.tanh(logits / settings["softcap"])
            logits, slope = settings["softcap"] * squashed, slope * (1 - squashed.square())
        probabilities = torch.exp(logits * settings["inv_t"] - log_z.unsqueeze(1))
        is_target = targets.unsqueeze(1) == ids
        of_logits = of_log_probs.unsqueeze(1) * (is_target.float() - probabilities) * slope
        of_rows = of_logits.to(ctx.compute_dtype).t() @ hidden
        return (*original, of_rows.to(ctx.dtype), None)


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]

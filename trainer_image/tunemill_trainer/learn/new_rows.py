"""Trains and applies the rows of new tokens without copying the vocabulary matrix and without a gradient for all of it.

PEFT's layer for such rows makes a new vocabulary matrix of the frozen one and the rows, for the embedding and for the
head, in every forward pass and for every decoded token, and autograd makes a gradient of the same size. Here the rows
are written into the frozen matrix in place, and their gradient is computed for them alone.

The modules, the parameters and what is saved stay PEFT's; only the forward pass is another one.
"""

from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from trl.kernels import ChunkedLogProbFunction
from typing_extensions import override


def use_in_place(model: nn.Module) -> None:
    """Train the rows of new tokens in place; a model without such rows stays as it is.

    Args:
        model: wrapped by PEFT, with an adapter that is trained.
    """
    for layer in _layers(model):
        layer.__class__ = RowsInPlace


def write_for_inference(model: nn.Module) -> None:
    """Write trained rows into the vocabulary matrix once, so that a decoded token costs nothing more than in the base.

    Args:
        model: wrapped by PEFT. Its adapter can be merged, but is not to be trained or switched off afterwards.
    """
    for layer in _layers(model):
        layer.__class__ = RowsInPlace
        layer.write(layer.trainable_tokens_delta)
        # Now PEFT passes all calls on to the base layer.
        layer.merged_adapters = list(layer.active_adapters)


class RowsInPlace(TrainableTokensLayer):  # type: ignore[misc] # peft ships no types
    """PEFT's layer, which writes the rows into the frozen matrix before it is used."""

    def write(self, rows: Any) -> None:  # noqa: ANN401
        """Put rows into the frozen matrix.

        Args:
            rows: by adapter; k by width.
        """
        # Not a change that autograd has to know of: what a pass has saved holds the same values.
        matrix = self.base_layer.weight.data
        for adapter in self.active_adapters:
            matrix.index_copy_(0, self.ids(adapter), rows[adapter].detach().to(matrix))

    def ids(self, adapter: str) -> torch.Tensor:
        """Return the ids of the new tokens, k of them, on the device of the matrix."""
        device = self.base_layer.weight.device
        kept: dict[tuple[str, torch.device], torch.Tensor] = self.__dict__.setdefault("_ids", {})
        if (adapter, device) not in kept:
            kept[adapter, device] = torch.tensor(self.token_indices[adapter], device=device)
        return kept[adapter, device]

    @override
    def get_merged_weights(self, active_adapters: list[str]) -> torch.Tensor:
        """Return the frozen matrix with the rows in it: vocabulary by width."""
        if self.merged:
            return self.base_layer.weight
        self.write(self.trainable_tokens_delta)
        weight = self.base_layer.weight
        # For LogProbs, which gets the matrix alone.
        weight.new_rows = [(self.trainable_tokens_delta[adapter], self.ids(adapter)) for adapter in active_adapters]
        return weight

    @override
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the rows for good.

        Raises:
            ValueError: with `safe_merge`, when they are not all finite.
        """
        if self.merged:
            return
        rows = self.trainable_tokens_delta
        if safe_merge and not all(bool(torch.isfinite(rows[adapter]).all()) for adapter in self.active_adapters):
            raise ValueError("NaNs detected in the rows of new tokens. The adapter seems to be broken")
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
        """Call the base layer, and have the gradient of the rows computed from that of the result.

        Args:
            x: token ids for an embedding, hidden states for a head.
            active_adapters: whose rows are used.
            args: the base layer's.
            kwargs: the base layer's.
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
    """Hands an embedding's result on; the gradient of a row is the sum of those of the places where its token stands.

    Arguments: the result (… by width), the token ids (…), the rows (k by width), their ids (k), what the embedding
    multiplies its rows by (or None).
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
        stands = (ids.unsqueeze(1) == tokens.reshape(-1)).to(gradient.dtype)
        of_rows = (stands @ gradient.reshape(-1, gradient.shape[-1])).to(ctx.dtype)
        return None, None, of_rows if scale is None else of_rows * scale.to(ctx.dtype), None, None


class _HeadRows(torch.autograd.Function):  # type: ignore[misc]
    """Hands logits on; the gradient of a row is the hidden states, weighted by the gradients of its logit.

    Arguments: the logits (… by vocabulary), the hidden states (… by width), the rows (k by width), their ids (k).
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
    """TRL's function behind its fused head, with the gradient of new rows where the head has some."""

    @classmethod
    @override
    def apply(cls, hidden: torch.Tensor, weight: torch.Tensor, *rest: Any) -> Any:
        new_rows = getattr(weight, "new_rows", [])
        if not new_rows:
            return ChunkedLogProbFunction.apply(hidden, weight, *rest)
        assert len(new_rows) == 1, "PEFT allows one adapter with new rows"
        return super().apply(hidden, weight, *rest, *new_rows[0])

    @staticmethod
    @override
    def forward(ctx: Any, *arguments: Any) -> Any:
        *usual, rows, ids = arguments
        ctx.ids, ctx.dtype = ids, rows.dtype
        return ChunkedLogProbFunction.forward(ctx, *usual)

    @staticmethod
    @override
    def backward(ctx: Any, of_log_probs: torch.Tensor | None, of_entropy: torch.Tensor | None, *others: Any) -> Any:
        usual = ChunkedLogProbFunction.backward(ctx, of_log_probs, of_entropy, *others)
        assert of_entropy is None, "the gradient of new rows is that of log-probabilities"
        if of_log_probs is None:
            return (*usual, None, None)
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
        return (*usual, of_rows.to(ctx.dtype), None)


def _layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, TrainableTokensLayer)]

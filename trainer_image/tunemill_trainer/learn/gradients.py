"""Adds the gradients of all ranks in one exchange per step."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from tunemill_trainer.process.ranks import Ranks


class GradientSum:
    """Keeps the gradients of the trained parameters in one buffer, which is added over all ranks together with figures.

    A parameter that a rank did not use in a step has a gradient of zero there.

    Args:
        parameters: the trained parameters.
        ranks: the ranks.
        figures: how many numbers are added together with the gradients.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks, figures: int) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._ranks = ranks
        self._figures = figures
        self._buffers: dict[torch.dtype, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """The bytes that each rank contributes to a step."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def start(self) -> None:
        """Set all gradients to zero. The backward passes add to them in place."""
        if not self._buffers:
            self._allocate()
        for buffer in self._buffers.values():
            buffer.zero_()
        ends = dict.fromkeys(self._buffers, 0)
        for parameter in self._parameters:
            start = ends[parameter.dtype]
            ends[parameter.dtype] = start + parameter.numel()
            parameter.grad = self._buffers[parameter.dtype][start : ends[parameter.dtype]].view_as(parameter)

    def add(self, figures: Sequence[torch.Tensor | float]) -> list[float]:
        """Replace the gradients by their sum over all ranks, and return the sums of the figures.

        The host waits for the device: all ranks have to know the figures before the next step.
        """
        tail = self._buffers[torch.float32][-self._figures :]
        for at, figure in enumerate(figures):
            tail[at] = figure
        for buffer in self._buffers.values():
            self._ranks.sum(buffer)
        sums: list[float] = tail.tolist()
        return sums

    def _allocate(self) -> None:
        device = self._parameters[0].device
        sizes = {torch.float32: self._figures}
        for parameter in self._parameters:
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
        self._buffers = {dtype: torch.empty(size, dtype=dtype, device=device) for dtype, size in sizes.items()}

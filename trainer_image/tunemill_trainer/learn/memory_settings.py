"""The settings with which a training run saves memory, and their order; pure.

When memory is not enough, a run takes the next settings, which need less memory and more time: gradient checkpointing
of every second layer, then of every layer (about a third more time), then smaller forward passes, down to a single
row. Losses and gradients do not depend on the settings.
"""

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Self


class Checkpointing(StrEnum):
    """Gradient checkpointing: which layers recompute their activations in the backward pass instead of storing them."""

    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"

    @property
    def every_n_layers(self) -> int:
        """One of this many layers recomputes its activations; 0 means no layer."""
        return {Checkpointing.NONE: 0, Checkpointing.SELECTIVE: 2, Checkpointing.FULL: 1}[self]


@dataclass(frozen=True)
class MemorySettings:
    """The settings of a run on which its memory depends.

    Attributes:
        pass_tokens: maximum tokens of a forward pass in training, padding included; a longer row has a separate pass.
        held_out_tokens: the same for passes without gradients, which measure the held-out loss.
        checkpointing: which layers recompute their activations.
    """

    pass_tokens: int
    held_out_tokens: int
    checkpointing: Checkpointing = Checkpointing.NONE

    def reduced(self, smaller: int | None) -> Self | None:
        """Return the next settings after a training step did not fit into memory; None when there are none.

        Args:
            smaller: a smaller maximum of `pass_tokens`, with which this step has more passes; None if every row has a
                separate pass already.
        """
        if self.checkpointing is Checkpointing.NONE:
            return replace(self, checkpointing=Checkpointing.SELECTIVE)
        if self.checkpointing is Checkpointing.SELECTIVE:
            return replace(self, checkpointing=Checkpointing.FULL)
        return None if smaller is None else replace(self, pass_tokens=smaller)

    def reduced_held_out(self, smaller: int | None) -> Self | None:
        """Return the next settings after a pass without gradients did not fit; checkpointing does not affect it."""
        return None if smaller is None else replace(self, held_out_tokens=smaller)

    def to_json(self) -> dict[str, object]:
        """Return the settings as JSON, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, object]) -> Self:
        """Parse the result of `to_json`."""
        return cls(
            pass_tokens=int(str(value["pass_tokens"])),
            held_out_tokens=int(str(value["held_out_tokens"])),
            checkpointing=Checkpointing(str(value["checkpointing"])),
        )

    def minimum_with(self, other: Self) -> Self:
        """Return, setting by setting, the one of both that needs less memory: the start of a resumed run."""
        order = list(Checkpointing)
        return replace(
            self,
            pass_tokens=min(self.pass_tokens, other.pass_tokens),
            held_out_tokens=min(self.held_out_tokens, other.held_out_tokens),
            checkpointing=max(self.checkpointing, other.checkpointing, key=order.index),
        )

    def __str__(self) -> str:
        """Describe the settings for logs and status."""
        layers = {Checkpointing.NONE: "no layer", Checkpointing.SELECTIVE: "every second layer"}.get(
            self.checkpointing, "every layer"
        )
        return f"{self.pass_tokens} tokens per forward pass, {layers} recomputed in the backward pass"

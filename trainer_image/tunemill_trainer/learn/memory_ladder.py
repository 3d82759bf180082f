"""What a training run does to need less memory, one rung after the other; pure.

Each rung costs time and saves memory: every second layer recomputes its activations in the backward pass, then every
layer does (about a third more time), then forward passes become smaller, down to a single row. Losses and gradients
are the same on all rungs.
"""

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Self


class Checkpointing(StrEnum):
    """Which layers recompute their activations in the backward pass instead of keeping them."""

    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"

    @property
    def every_n_layers(self) -> int:
        """Of so many layers one recomputes; 0 means that none does."""
        return {Checkpointing.NONE: 0, Checkpointing.SELECTIVE: 2, Checkpointing.FULL: 1}[self]


@dataclass(frozen=True)
class Rung:
    """How much a run computes at once.

    Attributes:
        pass_tokens: padded tokens that a forward pass of a training step may have; a longer row has a pass of its own.
        held_out_tokens: the same for a pass without gradients, in which the held-out loss is measured.
        checkpointing: which layers recompute their activations.
    """

    pass_tokens: int
    held_out_tokens: int
    checkpointing: Checkpointing = Checkpointing.NONE

    def below(self, smaller: int | None) -> Self | None:
        """Return the next rung after a training step did not fit; None when there is none.

        Args:
            smaller: a lower bound of the tokens of a pass that would cut this step into more passes; None when each of
                its rows has a pass of its own.
        """
        if self.checkpointing is Checkpointing.NONE:
            return replace(self, checkpointing=Checkpointing.SELECTIVE)
        if self.checkpointing is Checkpointing.SELECTIVE:
            return replace(self, checkpointing=Checkpointing.FULL)
        return None if smaller is None else replace(self, pass_tokens=smaller)

    def below_held_out(self, smaller: int | None) -> Self | None:
        """Return the next rung after a pass without gradients did not fit, for which recomputation changes nothing."""
        return None if smaller is None else replace(self, held_out_tokens=smaller)

    def to_json(self) -> dict[str, object]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, object]) -> Self:
        """Read what `to_json` returned."""
        return cls(
            pass_tokens=int(str(value["pass_tokens"])),
            held_out_tokens=int(str(value["held_out_tokens"])),
            checkpointing=Checkpointing(str(value["checkpointing"])),
        )

    def lower_of(self, other: Self) -> Self:
        """Return the lower of both in each respect: what a resumed run starts with."""
        order = list(Checkpointing)
        return replace(
            self,
            pass_tokens=min(self.pass_tokens, other.pass_tokens),
            held_out_tokens=min(self.held_out_tokens, other.held_out_tokens),
            checkpointing=max(self.checkpointing, other.checkpointing, key=order.index),
        )

    def __str__(self) -> str:
        """For people."""
        layers = {Checkpointing.NONE: "no layer", Checkpointing.SELECTIVE: "every second layer"}.get(
            self.checkpointing, "every layer"
        )
        return f"{self.pass_tokens} tokens per forward pass, {layers} recomputed in the backward pass"

"""The loss on answers without gradients, in as few forward passes as memory allows."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from tunemill_trainer.learn import passes
from tunemill_trainer.learn.loss import score_for
from tunemill_trainer.learn.micro_batches import deal, halved, split
from tunemill_trainer.learn.out_of_memory import Shortage, attempt
from tunemill_trainer.learn.passes import Row
from tunemill_trainer.process.ranks import Ranks

T = TypeVar("T")

_PASS_TOKENS = 4096
"""The initial maximum of tokens in a forward pass. On a CPU, all logits of the answers are in memory at once."""


def losses_of_passes(
    loss_of: Callable[[Sequence[T]], torch.Tensor],
    rows: Sequence[T],
    lengths: Sequence[int],
    tokens: int,
    smaller: Callable[[Shortage, Sequence[int], int | None], int],
    *,
    padded: bool,
) -> list[torch.Tensor]:
    """Return the losses of the forward passes of some rows.

    Args:
        loss_of: computes the loss of a pass.
        rows: the rows.
        lengths: tokens of each row.
        tokens: the maximum number of tokens of a pass.
        smaller: called when a pass did not fit into memory, with the lengths of the rows that are left and a smaller
            maximum, or None if every row has a separate pass already. Returns the maximum to continue with, or raises.
        padded: whether rows are padded to the longest of their pass.
    """
    losses: list[torch.Tensor] = []
    waiting = split(lengths, tokens, padded=padded)
    while waiting:
        loss = attempt(partial(loss_of, [rows[at] for at in waiting[0]]))
        if not isinstance(loss, Shortage):
            losses.append(loss)
            waiting = waiting[1:]
            continue
        left = [at for rows_of_pass in waiting for at in rows_of_pass]
        lengths_left = [lengths[at] for at in left]
        tokens = smaller(loss, lengths_left, halved(lengths_left, tokens, padded=padded))
        waiting = [[left[at] for at in chosen] for chosen in split(lengths_left, tokens, padded=padded)]
    return losses


def summed_loss(
    model: Any,  # noqa: ANN401 - transformers ships no types
    rows: Sequence[Row],
    ranks: Ranks,
    *,
    memory_kills: int = 0,
    check_stop: Callable[[], None],
    on_progress: Callable[[int], None],
) -> float:
    """Return the summed loss of the supervised tokens in nats. With several ranks, each one computes its share.

    Args:
        model: a causal language model in evaluation mode.
        rows: the rows, the same on all ranks.
        ranks: the processes that evaluate together.
        memory_kills: number of earlier pods that exceeded their memory limit. Each halves a forward pass.
        check_stop: called before every forward pass. It may raise to stop.
        on_progress: called after every forward pass with the number of this rank's rows that are done.

    Raises:
        torch.OutOfMemoryError: a single row does not fit into memory.
    """
    score, done = score_for(model.device), 0

    def loss_of(some: Sequence[Row]) -> torch.Tensor:
        nonlocal done
        check_stop()
        with torch.inference_mode():
            loss = score(model, passes.make(some, model.device, padded=True)).loss.double()
        done += len(some)
        on_progress(done)
        return loss

    lengths = [len(row["input_ids"]) for row in rows]
    mine = deal(lengths, ranks.count)[ranks.index]
    own, own_lengths = [rows[at] for at in mine], [lengths[at] for at in mine]
    losses = losses_of_passes(loss_of, own, own_lengths, _PASS_TOKENS >> memory_kills, _smaller, padded=True)
    return sum(ranks.gather(float(sum(losses))))


def _smaller(shortage: Shortage, _lengths: Sequence[int], smaller: int | None) -> int:
    if smaller is None:
        raise torch.OutOfMemoryError(shortage.message)
    return smaller

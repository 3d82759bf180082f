"""The order in which a run sees its rows: a function of data and seed alone, so that a resumed run goes on exactly."""

import random
from collections.abc import Sequence

_MEGA_BATCH = 50
"""Batches that are drawn together and sorted by length: enough to pad little, few enough to stay random."""
_LEAST_GROUPS = 4
"""Groups that an epoch has at least, as with Transformers' group_by_length. Rows of one length tend to call one tool:
with an epoch of 50 batches sorted as a whole, the demo's exact match was 0.69 after 140 steps instead of 0.96."""


def row_order(lengths: Sequence[int], batch_size: int, seed: int, count: int) -> list[int]:
    """Return the indices of the first `count` rows that a run sees; after the last row it begins anew in another order.

    Rows of like length share a batch, which saves about half of the computation for rows of mixed lengths (measured:
    from 51 % to 98 % useful tokens). The longest batch comes first: what does not fit into memory shows at the first
    step.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        rows = list(range(len(lengths)))
        draw = random.Random(f"{seed}/{epoch}")  # noqa: S311 - no secret
        draw.shuffle(rows)
        # What the last batch of the epoch before lacks; without it all batches would straddle two groups from here on.
        missing = -len(order) % batch_size
        order += rows[:missing]
        order += _grouped(rows[missing:], lengths, batch_size, draw)
        epoch += 1
    return order[:count]


def _grouped(rows: Sequence[int], lengths: Sequence[int], batch_size: int, draw: random.Random) -> list[int]:
    """Return the rows in batches of like length: the longest first, then in no order; a short one last."""
    size = batch_size * max(1, min(_MEGA_BATCH, len(rows) // (batch_size * _LEAST_GROUPS)))
    batches: list[list[int]] = []
    for start in range(0, len(rows), size):
        drawn = sorted(rows[start : start + size], key=lambda row: -lengths[row])
        batches += [drawn[at : at + batch_size] for at in range(0, len(drawn), batch_size)]
    draw.shuffle(batches)
    longest = max((lengths[batch[0]] for batch in batches), default=0)
    batches.sort(key=lambda batch: 1 if len(batch) < batch_size else 0 if lengths[batch[0]] < longest else -1)
    return [row for batch in batches for row in batch]

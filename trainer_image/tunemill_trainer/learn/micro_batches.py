"""Cuts the rows of an optimizer step into forward passes of a bounded number of tokens; pure."""

from collections.abc import Sequence

_WORTH_A_PASS = 256
"""Tokens of padding that cost more than one more forward pass."""


def split(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the indices of the rows of each forward pass, rows of like length together.

    Args:
        lengths: tokens of each row.
        tokens: that one pass may have with its padding; a longer row has a pass of its own.
    """
    passes: list[list[int]] = []
    # The longest first, so that the first row of a pass is what all others are padded to.
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[passes[-1][0]] if passes else 0
        if passes and (len(passes[-1]) + 1) * longest <= tokens and longest - lengths[row] <= _WORTH_A_PASS:
            passes[-1].append(row)
        else:
            passes.append([row])
    return passes


def halved(lengths: Sequence[int], tokens: int) -> int | None:
    """Return a smaller bound after a pass with these rows did not fit; None when every pass has one row already.

    Half of the largest pass of several rows: the old bound may have been far above what these rows need.
    """
    shared = [len(rows) * lengths[rows[0]] for rows in split(lengths, tokens) if len(rows) > 1]
    return max(shared) // 2 if shared else None

"""Cuts the rows of an optimizer step into forward passes of a bounded number of tokens; pure."""

from collections.abc import Sequence

_WORTH_A_PASS = 256
"""Tokens of padding that cost more than one more forward pass."""


def split(lengths: Sequence[int], tokens: int, *, padded: bool) -> list[list[int]]:
    """Return the indices of the rows of each forward pass.

    Args:
        lengths: tokens of each row.
        tokens: that one pass may have; a longer row has a pass of its own.
        padded: whether rows are padded to the longest of their pass, which then has rows of like length, and padding
            counts. Otherwise they lie end to end, and there are as few passes as the longest-first rule finds.
    """
    passes: list[list[int]] = []
    # The longest first, so that the first row of a padded pass is what all others are padded to.
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        for rows in passes[-1:] if padded else passes:
            if _size([*rows, row], lengths, padded) > tokens:
                continue
            if not padded or lengths[rows[0]] - lengths[row] <= _WORTH_A_PASS:
                rows.append(row)
                break
        else:
            passes.append([row])
    return passes


def halved(lengths: Sequence[int], tokens: int, *, padded: bool) -> int | None:
    """Return a smaller bound after a pass with these rows did not fit; None when every pass has one row already.

    Half of the largest pass of several rows: the old bound may have been far above what these rows need.
    """
    passes = split(lengths, tokens, padded=padded)
    shared = [_size(rows, lengths, padded) for rows in passes if len(rows) > 1]
    return max(shared) // 2 if shared else None


def _size(rows: Sequence[int], lengths: Sequence[int], padded: bool) -> int:
    return len(rows) * lengths[rows[0]] if padded else sum(lengths[row] for row in rows)

"""Splits the rows of an optimizer step into forward passes with a limited number of tokens; pure."""

from collections.abc import Sequence

_WORTH_A_PASS = 256
"""The padding, in tokens, above which an additional forward pass is cheaper."""


def split(lengths: Sequence[int], tokens: int, *, padded: bool) -> list[list[int]]:
    """Return the indices of the rows of each forward pass.

    Args:
        lengths: tokens of each row.
        tokens: maximum tokens of a pass; a longer row has a separate pass.
        padded: whether rows are padded to the longest of their pass. Then padding counts, and a pass has rows of
            similar lengths. Otherwise rows are concatenated, and first-fit-decreasing minimizes the number of passes.
    """
    passes: list[list[int]] = []
    # Longest first, so that the first row of a padded pass determines its length.
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
    """Return a smaller maximum after these rows did not fit into memory; None when every pass has one row already.

    It is half of the largest pass with several rows, as the old maximum may be far above the size of these passes.
    """
    passes = split(lengths, tokens, padded=padded)
    shared = [_size(rows, lengths, padded) for rows in passes if len(rows) > 1]
    return max(shared) // 2 if shared else None


def _size(rows: Sequence[int], lengths: Sequence[int], padded: bool) -> int:
    return len(rows) * lengths[rows[0]] if padded else sum(lengths[row] for row in rows)

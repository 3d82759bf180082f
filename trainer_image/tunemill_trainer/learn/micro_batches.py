"""Deals the rows of an optimizer step to ranks, and splits them into passes with a limited number of tokens; pure."""

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


def deal(lengths: Sequence[int], ranks: int, padded_to: int = 0) -> list[list[int]]:
    """Return the indices of the rows of each rank, so that the ranks need about the same time.

    The rows are dealt longest first, each to the rank with the least tokens so far. Rows that are padded are dealt in
    passes of similar lengths, of the size with which the slowest rank has the fewest tokens.

    Args:
        lengths: tokens of each row.
        ranks: number of ranks.
        padded_to: maximum tokens of a pass, if the rows of a pass are padded; 0 if they are not.
    """
    if ranks == 1:
        return [list(range(len(lengths)))]
    if not padded_to:
        return _dealt([[row] for row in range(len(lengths))], lengths, ranks, padded=False)
    candidates, tokens = [], padded_to
    while True:
        dealt = _dealt(split(lengths, tokens, padded=True), lengths, ranks, padded=True)
        slowest = max(_cost([lengths[row] for row in rows], padded_to) for rows in dealt)
        candidates.append((slowest, dealt))
        if tokens <= max(1, min(lengths)):
            break
        tokens //= 2
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _dealt(units: Sequence[list[int]], lengths: Sequence[int], ranks: int, *, padded: bool) -> list[list[int]]:
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for unit in sorted(units, key=lambda unit: -_size(unit, lengths, padded)):
        rank = min(range(ranks), key=load.__getitem__)
        load[rank] += _size(unit, lengths, padded)
        dealt[rank] += unit
    return dealt


def _cost(lengths: Sequence[int], tokens: int) -> int:
    """Return the tokens of padded passes of at most `tokens`, with the fixed time of a pass as tokens."""
    passes = split(lengths, tokens, padded=True)
    return sum(_size(rows, lengths, padded=True) + _WORTH_A_PASS for rows in passes)


def halved(lengths: Sequence[int], tokens: int, *, padded: bool) -> int | None:
    """Return a smaller maximum after these rows did not fit into memory; None when every pass has one row already.

    It is half of the largest pass with several rows, as the old maximum may be far above the size of these passes.
    """
    passes = split(lengths, tokens, padded=padded)
    shared = [_size(rows, lengths, padded) for rows in passes if len(rows) > 1]
    return max(shared) // 2 if shared else None


def _size(rows: Sequence[int], lengths: Sequence[int], padded: bool) -> int:
    return len(rows) * lengths[rows[0]] if padded else sum(lengths[row] for row in rows)

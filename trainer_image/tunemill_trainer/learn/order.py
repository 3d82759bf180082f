"""The order in which a run sees its rows: a function of data and seed alone, so that a resumed run goes on exactly.

Rows of like length are not put into one step, as Transformers' group_by_length does: they tend to call the same tool,
and a step that sees one tool unlearns the others. The demo's exact match was 0.65 with rows grouped within quarters of
an epoch and 0.90 in no order, after the same 200 steps. Padding is avoided where a step is cut into forward passes.
"""

import random
from collections.abc import Sequence


def row_order(lengths: Sequence[int], seed: int, count: int) -> list[int]:
    """Return the indices of the first `count` rows that a run sees; after the last row it begins anew in another order.

    The longest row comes first: what does not fit into memory shows at the first step.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        rows = list(range(len(lengths)))
        random.Random(f"{seed}/{epoch}").shuffle(rows)  # noqa: S311 - no secret
        if epoch == 0:
            longest = max(rows, key=lengths.__getitem__)
            rows.remove(longest)
            rows.insert(0, longest)
        order += rows
        epoch += 1
    return order[:count]

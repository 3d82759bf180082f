"""The order of the rows: every row once an epoch, like lengths together, the same for the same seed."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tunemill_trainer.learn.order import row_order

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(1, 4))
def test_every_row_is_seen_once_an_epoch(lengths: list[int], batch: int, seed: int, epochs: int) -> None:
    """Proves that `epochs` passes see each row exactly so often, and each pass each row once."""
    order = row_order(lengths, batch, seed, epochs * len(lengths))
    assert Counter(order) == dict.fromkeys(range(len(lengths)), epochs)
    for epoch in range(epochs):
        assert sorted(order[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 40), st.integers(0, 9), st.integers(1, 900))
def test_a_longer_run_begins_as_a_shorter_one(lengths: list[int], batch: int, seed: int, count: int) -> None:
    """Proves that the order depends on data and seed alone, which is what resuming needs."""
    assert row_order(lengths, batch, seed, count) == row_order(lengths, batch, seed, count + 100)[:count]


def test_batches_hold_rows_of_like_length_in_every_epoch() -> None:
    """Proves that little is padded, also after an epoch with a short last batch, and that the longest comes first."""
    lengths = [1 + row * row % 997 for row in range(3003)]
    order = row_order(lengths, 8, 0, 3 * len(lengths))
    batches = [[lengths[row] for row in order[at : at + 8]] for at in range(0, len(order) - 8, 8)]
    padded = sum(len(batch) * max(batch) for batch in batches)
    assert sum(map(sum, batches)) / padded > 0.95
    assert max(batches[0]) == max(lengths)


def test_another_seed_draws_another_order() -> None:
    """Proves that spec.training.seed does something."""
    lengths = list(range(1, 101))
    assert row_order(lengths, 8, 1, 100) != row_order(lengths, 8, 2, 100)

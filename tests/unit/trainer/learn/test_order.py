"""The order of the rows: every row once per epoch, the longest first, the same for the same seed."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from tunemill_trainer.learn.order import row_order

LENGTHS = st.lists(st.integers(1, 500), min_size=1, max_size=300)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 9), st.integers(1, 4))
def test_every_row_is_used_once_per_epoch(lengths: list[int], seed: int, epochs: int) -> None:
    """Every epoch contains each row exactly once."""
    order = row_order(lengths, seed, epochs * len(lengths))
    assert Counter(order) == dict.fromkeys(range(len(lengths)), epochs)
    for epoch in range(epochs):
        assert sorted(order[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 9), st.integers(1, 900))
def test_a_longer_run_starts_like_a_shorter_one(lengths: list[int], seed: int, count: int) -> None:
    """The order depends on data and seed only, which resuming needs."""
    assert row_order(lengths, seed, count) == row_order(lengths, seed, count + 100)[:count]


def test_the_longest_row_comes_first_and_other_rows_are_not_sorted() -> None:
    """A lack of memory shows at the first step, and a step is a random sample of the data."""
    lengths = [1 + row * row % 997 for row in range(3003)]
    order = row_order(lengths, 0, 2 * len(lengths))
    assert lengths[order[0]] == max(lengths)
    means = [sum(lengths[row] for row in order[at : at + 100]) / 100 for at in range(0, len(order) - 100, 100)]
    assert max(means) < 1.4 * min(means)


def test_another_seed_gives_another_order() -> None:
    """spec.training.seed changes the order."""
    lengths = list(range(1, 101))
    assert row_order(lengths, 1, 100) != row_order(lengths, 2, 100)

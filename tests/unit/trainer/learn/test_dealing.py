"""Distribution of the rows of a step over ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_trainer.learn.micro_batches import deal, split

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=60)


@given(LENGTHS, st.integers(1, 9), st.sampled_from([0, 512, 4096]))
def test_every_row_is_assigned_once(lengths: list[int], ranks: int, padded_to: int):
    """No row is lost or computed twice, also with fewer rows than ranks."""
    dealt = deal(lengths, ranks, padded_to)
    assert len(dealt) == ranks
    assert sorted(row for rows in dealt for row in rows) == list(range(len(lengths)))


@given(LENGTHS, st.integers(2, 9))
def test_no_rank_has_much_more_than_its_share(lengths: list[int], ranks: int):
    """Graham's bound for longest-first assignment: 4/3 of the optimum, so of the mean and a longest row."""
    loads = [sum(lengths[row] for row in rows) for rows in deal(lengths, ranks)]
    assert max(loads) <= 4 / 3 * (sum(lengths) / ranks + max(lengths))
    assert max(loads) - min(loads) <= max(lengths)


@pytest.mark.parametrize(
    ("lengths", "ranks", "padded_to", "slowest"),
    [
        # Alone, each of three ranks would have one of the passes of four equal rows, or two.
        ([500] * 8, 3, 0, 1500),
        ([500] * 8, 3, 16_384, 1500),
        # Rows of a similar length stay together where they are padded.
        ([2000, 2000, 300, 300, 300, 300], 2, 16_384, 2600),
    ],
)
def test_the_slowest_rank_is_close_to_the_mean(lengths: list[int], ranks: int, padded_to: int, slowest: int):
    """For steps that fit into one forward pass."""
    dealt = deal(lengths, ranks, padded_to)

    def tokens(rows: list[int]) -> int:
        own = [lengths[row] for row in rows]
        passes = split(own, padded_to or 16_384, padded=bool(padded_to))
        return sum(len(chosen) * own[chosen[0]] if padded_to else sum(own[at] for at in chosen) for chosen in passes)

    assert max(map(tokens, dealt)) == slowest


def test_one_rank_gets_the_step_unchanged():
    """The order of the rows stays."""
    assert deal([3, 1, 2], 1) == [[0, 1, 2]]

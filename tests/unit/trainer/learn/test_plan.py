"""The figures of a run follow from the wish and the data."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tunemill_api.training import Training
from tunemill_trainer.learn.micro_batches import halved, split
from tunemill_trainer.learn.plan import plan


@pytest.mark.parametrize(
    ("training", "rows", "steps", "log_every"),
    [
        (Training(epochs=1, batch_size=8), 80, 10, 1),
        (Training(epochs=3, batch_size=8), 81, 31, 1),
        (Training(epochs=1, batch_size=8), 3, 1, 1),
        (Training(max_steps=200, batch_size=8), 3, 200, 1),
        (Training(max_steps=201, batch_size=8), 3, 201, 10),
    ],
)
def test_steps_come_from_epochs_or_are_given(training: Training, rows: int, steps: int, log_every: int) -> None:
    """Proves that each row counts as often as there are epochs, and that short runs log every step."""
    made = plan(training, rows)
    assert (made.steps, made.log_every) == (steps, log_every)


def test_each_pod_that_was_killed_for_memory_halves_a_forward_pass() -> None:
    """Proves that the next pod computes less at once, down to one row, and does the same steps."""
    whole, kills = plan(Training(), 100), range(1, 22)
    smaller = [plan(Training(), 100, count) for count in kills]
    assert [made.micro_batch_tokens for made in smaller] == [whole.micro_batch_tokens // 2**count for count in kills]
    assert {made.steps for made in smaller} == {whole.steps}
    assert split([5, 5], smaller[-1].micro_batch_tokens, padded=False) == [[0], [1]]


def size(rows: list[int], lengths: list[int], padded: bool) -> int:
    """Tokens of a forward pass."""
    return len(rows) * max(lengths[row] for row in rows) if padded else sum(lengths[row] for row in rows)


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=64), st.integers(1, 40_000), st.booleans())
def test_every_row_has_one_forward_pass_and_none_is_too_large(lengths: list[int], tokens: int, padded: bool) -> None:
    """Proves that an optimizer step has exactly its rows, and that padding counts where there is some."""
    passes = split(lengths, tokens, padded=padded)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or size(rows, lengths, padded) <= tokens


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=64), st.integers(1, 40_000))
def test_rows_end_to_end_fill_their_passes(lengths: list[int], tokens: int) -> None:
    """Proves that no two passes could be one: a pass costs the same kernels however few tokens it has."""
    passes = split(lengths, tokens, padded=False)
    sizes = sorted(size(rows, lengths, padded=False) for rows in passes)
    assert len(sizes) == 1 or sizes[0] + sizes[1] > tokens


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=64), st.integers(1, 40_000), st.booleans())
def test_what_does_not_fit_is_cut_until_every_row_is_alone(lengths: list[int], tokens: int, padded: bool) -> None:
    """Proves that the largest pass of several rows shrinks with every try, until there is none."""
    bound: int | None = tokens
    largest = []
    while bound is not None:
        shared = [size(rows, lengths, padded) for rows in split(lengths, bound, padded=padded) if len(rows) > 1]
        largest.append(max(shared, default=0))
        bound = halved(lengths, bound, padded=padded)
    assert largest == sorted(set(largest), reverse=True)
    assert largest[-1] == 0

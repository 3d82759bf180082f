"""The number of steps and the size of forward passes, from spec and data."""

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
def test_steps_are_from_epochs_or_from_max_steps(training: Training, rows: int, steps: int, log_every: int) -> None:
    """Every row counts once per epoch, and short runs log every step."""
    made = plan(training, rows)
    assert (made.steps, made.log_every) == (steps, log_every)


def test_each_oom_killed_pod_halves_a_forward_pass() -> None:
    """The next pod computes smaller forward passes, down to one row, with the same steps."""
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
    """An optimizer step has exactly its rows, and padding counts."""
    passes = split(lengths, tokens, padded=padded)
    assert sorted(row for rows in passes for row in rows) == list(range(len(lengths)))
    for rows in passes:
        assert len(rows) == 1 or size(rows, lengths, padded) <= tokens


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=64), st.integers(1, 40_000))
def test_concatenated_rows_fill_their_passes(lengths: list[int], tokens: int) -> None:
    """No two passes could be merged: every pass costs the same number of kernels."""
    passes = split(lengths, tokens, padded=False)
    sizes = sorted(size(rows, lengths, padded=False) for rows in passes)
    assert len(sizes) == 1 or sizes[0] + sizes[1] > tokens


@given(st.lists(st.integers(1, 4096), min_size=1, max_size=64), st.integers(1, 40_000), st.booleans())
def test_passes_are_halved_until_each_has_one_row(lengths: list[int], tokens: int, padded: bool) -> None:
    """The largest pass with several rows shrinks with every attempt."""
    bound: int | None = tokens
    largest = []
    while bound is not None:
        shared = [size(rows, lengths, padded) for rows in split(lengths, bound, padded=padded) if len(rows) > 1]
        largest.append(max(shared, default=0))
        bound = halved(lengths, bound, padded=padded)
    assert largest == sorted(set(largest), reverse=True)
    assert largest[-1] == 0

"""The figures of a run follow from the wish and the data."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunemill_api.finetune import Training
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
    made = plan(training, rows, 100)
    assert (made.steps, made.log_every) == (steps, log_every)


@settings(deadline=None)
@given(st.integers(1, 4096), st.integers(1, 200_000))
def test_an_optimizer_step_always_has_the_rows_that_were_asked_for(batch: int, longest: int) -> None:
    """Proves that micro-batches divide the batch, down to one row, however often they are halved."""
    made = plan(Training(batch_size=batch), 1000, longest)
    sizes = [made.micro_batch]
    while made.micro_batch > 1:
        made = made.halved()
        sizes.append(made.micro_batch)
        assert made.micro_batch * made.accumulation == batch
    assert sizes == sorted(set(sizes), reverse=True)


def test_long_rows_get_small_micro_batches() -> None:
    """Proves that what does not fit is not tried first."""
    assert plan(Training(batch_size=64), 1000, 100).micro_batch == 64
    assert plan(Training(batch_size=64), 1000, 2048).micro_batch == 8
    assert plan(Training(batch_size=64), 1000, 100_000).micro_batch == 1

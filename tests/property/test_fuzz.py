"""Rows, files and replies with random changes never crash the readers. `make test-long` tries millions."""

from random import Random

import pytest
from tunemill_api.data import DatasetFormat
from tunemill_dev.fuzz import mutate, targets
from tunemill_dev.fuzz.__main__ import try_inputs
from tunemill_trainer.data import reading

INPUTS = 2000


@pytest.mark.slow
def test_the_first_inputs_do_not_crash_the_readers():
    """The same inputs in every run."""
    assert try_inputs(0, INPUTS, seed=0) == {}


def test_inputs_are_reproducible_by_number():
    """A finding of one run can be reproduced in another."""
    for make in (mutate.row, targets.file, targets.reply):
        assert make(Random("0:5")) == make(Random("0:5"))


def test_enough_rows_are_valid():
    """Otherwise only the rejection would be tested."""
    usable = [targets.usable_row(mutate.row(Random(f"usable:{n}")), DatasetFormat.AUTO) for n in range(200)]
    assert sum(row is not None for row in usable) > 10


def test_an_exception_is_reported(monkeypatch):
    """With its place in the code, once, and with the first input."""

    def fail(_row, _contract):
        return {}["x"]

    monkeypatch.setattr(reading.lint, "problems", fail)
    found = try_inputs(0, 60, seed=0)
    assert any("KeyError in test_fuzz.py line" in what and name == "row" for what, (name, _, _) in found.items())

"""Rows, files and replies with random changes: none crashes what reads them. `make test-long` tries millions."""

from random import Random

import pytest
from tunemill_api.data import DatasetFormat
from tunemill_dev.fuzz import mutate, targets
from tunemill_dev.fuzz.__main__ import try_inputs
from tunemill_trainer.data import reading

INPUTS = 2000


@pytest.mark.slow
def test_the_first_inputs():
    """The same ones in every run."""
    assert try_inputs(0, INPUTS, seed=0) == {}


def test_a_number_makes_an_input():
    """What was found in one run can be looked at in another."""
    for make in (mutate.row, targets.file, targets.reply):
        assert make(Random("0:5")) == make(Random("0:5"))


def test_enough_of_the_rows_are_usable():
    """Else only what refuses rows would be tried."""
    usable = [targets.usable_row(mutate.row(Random(f"usable:{n}")), DatasetFormat.AUTO) for n in range(200)]
    assert sum(row is not None for row in usable) > 10


def test_a_defect_is_found(monkeypatch):
    """Whatever the reader stumbles over: it is named with the place in the code, once, and with the first input."""

    def fail(_row, _contract):
        return {}["x"]

    monkeypatch.setattr(reading.lint, "problems", fail)
    found = try_inputs(0, 60, seed=0)
    assert any("KeyError in test_fuzz.py line" in what and name == "row" for what, (name, _, _) in found.items())

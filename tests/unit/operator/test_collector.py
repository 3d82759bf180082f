"""Garbage collection does not pause the operator for long."""

import gc
from collections.abc import Iterator

import pytest
from tunemill_operator.runtime import collector


@pytest.fixture(autouse=True)
def python_defaults() -> Iterator[None]:
    """Restore the garbage collector settings of this process."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_objects_from_startup_are_excluded_from_later_collections() -> None:
    """A full collection skips modules, classes and the initial content of the caches."""
    before = len(gc.get_objects())
    collector.settle()
    assert len(gc.get_objects()) < before / 10
    assert gc.get_freeze_count() > before / 2
    assert gc.get_threshold() == collector.THRESHOLDS


def test_cyclic_garbage_is_still_collected() -> None:
    """Cycles created after startup are freed."""
    collector.settle()
    circle: list[object] = []
    circle.append(circle)
    del circle
    assert gc.collect() >= 1

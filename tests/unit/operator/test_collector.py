"""The garbage collector does not stop the operator for long."""

import gc
from collections.abc import Iterator

import pytest
from tunemill_operator.runtime import collector


@pytest.fixture(autouse=True)
def python_defaults() -> Iterator[None]:
    """Leave the collector of this process as it was."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_is_there_at_the_start_is_left_out_of_later_collections() -> None:
    """A full collection no longer looks at modules, classes and the first content of the caches."""
    before = len(gc.get_objects())
    collector.settle()
    assert len(gc.get_objects()) < before / 10
    assert gc.get_freeze_count() > before / 2
    assert gc.get_threshold() == collector.THRESHOLDS


def test_garbage_in_circles_is_still_collected() -> None:
    """What comes after the start and refers to itself does not stay for ever."""
    collector.settle()
    circle: list[object] = []
    circle.append(circle)
    del circle
    assert gc.collect() >= 1

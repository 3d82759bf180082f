"""Remembers what was made of an object, by its identity: comparing large definitions costs more than making."""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KEPT = 1024


class Memo(Generic[K, V]):
    """A function that makes its value only once for the same object. Objects must not change.

    Args:
        make: the function.
    """

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        # With the object, so that its identity stays its own.
        self._made: dict[int, tuple[K, V]] = {}

    def __call__(self, key: K) -> V:
        """Return what was made of the object, or make it."""
        found = self._made.get(id(key))
        if found is not None:
            return found[1]
        if len(self._made) >= _KEPT:
            self._made.clear()
        value = self._make(key)
        self._made[id(key)] = key, value
        return value

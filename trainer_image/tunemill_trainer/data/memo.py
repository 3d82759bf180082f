"""Remembers what was made of an object or of a text. What is kept is bounded by its size, not only by its number.

Rows repeat their tools, so their definitions are read once. A file whose rows all have large tools of their own must
not fill the memory.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KEPT = 1024
_MOST_BYTES = 4 << 20
"""Of what values are made of; as Python objects, these take about thirty times as much."""


class Memo(Generic[K, V]):
    """A function that makes its value only once for the same object. Objects must not change.

    By their identity: comparing large definitions costs more than making.

    Args:
        make: the function.
        size_of: the bytes of an object, roughly; asked once for each that is remembered.
    """

    def __init__(self, make: Callable[[K], V], size_of: Callable[[K], int]) -> None:
        self._make = make
        self._size_of = size_of
        self._bytes = 0
        # With the object, so that its identity stays its own.
        self._made: dict[int, tuple[K, V]] = {}

    def __call__(self, key: K) -> V:
        """Return what was made of the object, or make it."""
        found = self._made.get(id(key))
        if found is not None:
            return found[1]
        value = self._make(key)
        size = self._size_of(key)
        if len(self._made) >= _KEPT or self._bytes + size > _MOST_BYTES:
            self._made.clear()
            self._bytes = 0
        if size <= _MOST_BYTES:
            self._made[id(key)] = key, value
            self._bytes += size
        return value


T = TypeVar("T", bound=str | bytes)


class Remembered(Generic[T, V]):
    """A function that makes its value only once for equal texts.

    Args:
        make: the function.
    """

    def __init__(self, make: Callable[[T], V]) -> None:
        self._make = make
        self._made: dict[T, V] = {}
        self._bytes = 0

    def __call__(self, key: T) -> V:
        """Return what was made of the text, or make it."""
        if key in self._made:
            return self._made[key]
        value = self._make(key)
        if len(self._made) >= 4 * _KEPT or self._bytes + len(key) > _MOST_BYTES:
            self._made.clear()
            self._bytes = 0
        if len(key) <= _MOST_BYTES:
            self._made[key] = value
            self._bytes += len(key)
        return value

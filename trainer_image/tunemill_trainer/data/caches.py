"""Caches of function results, by object identity or by text. Both the number and the size of entries are bounded.

Most rows repeat the same tools, so each definition is parsed once. A file with different large tools in every row must
not fill the memory.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KEPT = 1024
_MOST_BYTES = 4 << 20
"""The most bytes of all keys. As Python objects, they take about thirty times as much."""


class IdentityCache(Generic[K, V]):
    """Caches a function's results by the identity of its argument. Arguments must not change.

    Comparing large tool definitions would cost more than computing the result again.

    Args:
        make: the function.
        size_of: returns the rough size of an argument in bytes.
    """

    def __init__(self, make: Callable[[K], V], size_of: Callable[[K], int]) -> None:
        self._make = make
        self._size_of = size_of
        self._bytes = 0
        # The entry keeps the object alive, so that no other object can get its id.
        self._made: dict[int, tuple[K, V]] = {}

    def __call__(self, key: K) -> V:
        """Return the cached result for the object, or compute it."""
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


class TextCache(Generic[T, V]):
    """Caches a function's results by its argument, a string or bytes.

    Args:
        make: the function.
    """

    def __init__(self, make: Callable[[T], V]) -> None:
        self._make = make
        self._made: dict[T, V] = {}
        self._bytes = 0

    def __call__(self, key: T) -> V:
        """Return the cached result for the text, or compute it."""
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

"""Schedules status writes for progress, with one limit per object and one for all objects.

Objects with new progress wait in a queue, ordered by the time at which they may be written again. So every object is
written once before any is written twice. If the total limit applies, the interval between writes grows equally for all.
"""

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass

from tunemill_operator.runtime.cache import Key


@dataclass(frozen=True)
class Pace:
    """Limits on status writes for progress alone."""

    seconds: int = 10
    """Minimum number of seconds between two such writes for one object."""
    per_second: int = 10
    """Maximum number of such writes per second for all objects."""


class Turns:
    """Grants turns to write progress. Use it from one event loop only."""

    def __init__(self, pace: Pace, ready: Callable[[Key], None]) -> None:
        """`ready` is called with the key of an object whose turn has come."""
        self._pace = pace
        self._ready = ready
        self._line: list[tuple[float, int, Key]] = []
        self._waiting: dict[Key, int] = {}
        self._arrivals = 0
        self._granted: set[Key] = set()
        self._writing: set[Key] = set()
        self._written: dict[Key, float] = {}
        self._next = 0.0
        self._alarm: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, key: Key) -> None:
        """Add the object to the queue, unless it is waiting already."""
        if key in self._waiting or key in self._granted:
            return
        due = now = asyncio.get_running_loop().time()
        if key in self._written:
            due = max(now, self._written[key] + self._pace.seconds)
        self._arrivals += 1
        self._waiting[key] = self._arrivals
        heapq.heappush(self._line, (due, self._arrivals, key))
        self._give()

    def begin(self, key: Key) -> bool:
        """Return whether it is the object's turn. If so, the turn lasts until `end`."""
        if key not in self._granted:
            return False
        self._granted.discard(key)
        self._writing.add(key)
        self._written[key] = asyncio.get_running_loop().time()
        return True

    def end(self, key: Key) -> None:
        """End the object's turn, whether it was written or not."""
        self._writing.discard(key)
        self._give()

    def forget(self, key: Key) -> None:
        """Remove a deleted object."""
        self._waiting.pop(key, None)
        self._granted.discard(key)
        self._written.pop(key, None)
        self._give()

    def _give(self) -> None:
        """Grant the next turns, or set a timer for them.

        The number of unfinished turns is limited as well. If the API server is slow, they would accumulate and then be
        written all at once.
        """
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        loop = asyncio.get_running_loop()
        while self._line and len(self._granted) + len(self._writing) < self._pace.per_second:
            due, arrival, key = self._line[0]
            if self._waiting.get(key) != arrival:  # forgotten
                heapq.heappop(self._line)
                continue
            now, when = loop.time(), max(due, self._next)
            if when > now:
                self._alarm = loop.call_at(when, self._give)
                return
            heapq.heappop(self._line)
            del self._waiting[key]
            self._granted.add(key)
            self._next = now + 1 / self._pace.per_second
            self._ready(key)

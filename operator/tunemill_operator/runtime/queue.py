"""The work queue: which FunctionCallFineTune is to be looked at next.

As in client-go: a key waits once however often it is added; it is never worked on twice at the same time; a key that is
added while it is worked on comes again afterwards; failures back off per key and are forgotten on success.

Urgent keys come first, so that after a start among thousands of objects, or when hundreds are made at once, a new
object does not wait until everything else was looked at and told of.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from tunemill_operator.runtime.cache import Key

FIRST_BACK_OFF = 0.2
LONGEST_BACK_OFF = 60.0
URGENT_IN_A_ROW = 8
"""After so many urgent keys another one has its turn, however many urgent ones wait."""


class QueueObserver(Protocol):
    """Counts what happens in the queue."""

    def added(self) -> None:
        """A key has begun to wait."""

    def taken(self, waited: float) -> None:
        """A key was taken up after so many seconds."""

    def finished(self, worked: float) -> None:
        """A key was worked on for so many seconds."""

    def retried(self) -> None:
        """A key is put back after a failure."""


class QueueClosedError(Exception):
    """There is no more work."""


class WorkQueue:
    """Keys to be worked on, now or later. To be used from one event loop."""

    def __init__(self, observer: QueueObserver, urgent: Callable[[Key], bool] = lambda _: False) -> None:
        self._observer = observer
        self._urgent = urgent
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Semaphore(0)
        self._first: deque[Key] = deque()
        self._others: deque[Key] = deque()
        self._in_a_row = 0
        self._closed = False
        self._waiting: dict[Key, float] = {}
        self._processing: dict[Key, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def pressed(self) -> bool:
        """Whether urgent keys wait: what can come later, should."""
        return bool(self._first)

    def processing_seconds(self) -> list[float]:
        """Return for how long each key at work has been worked on."""
        return [self._loop.time() - since for since in self._processing.values()]

    def add(self, key: Key) -> None:
        """Have the key worked on as soon as a worker is free."""
        if key in self._waiting:
            return
        self._waiting[key] = self._loop.time()
        self._observer.added()
        if key not in self._processing:
            self._line_up(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Have the key worked on after so many seconds, or earlier when that was asked for before."""
        timer, when = self._timers.get(key), self._loop.time() + seconds
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = self._loop.call_at(when, self._due, key)

    def retry(self, key: Key, at_least: float = 0.0) -> None:
        """Have the key worked on again after a failure: the more failures in a row, the later."""
        back_off = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2 ** min(self._failures[key], 16))
        self._failures[key] += 1
        self._observer.retried()
        self.add_after(key, max(at_least, back_off * random.uniform(0.8, 1.2)))  # noqa: S311 - spreads load

    def forget(self, key: Key) -> None:
        """Forget the failures of the key."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Return the next key; the caller says when it is done with it.

        Raises:
            QueueClosedError: when the queue was closed; keys that still wait are left to the next process.
        """
        await self._ready.acquire()
        if self._closed:
            self._ready.release()  # for the next worker
            raise QueueClosedError
        key = self._next()
        now = self._loop.time()
        self._observer.taken(now - self._waiting.pop(key))
        self._processing[key] = now
        if timer := self._timers.pop(key, None):  # whoever works on it now says anew when to look again
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        """Say that the key is no longer worked on."""
        self._observer.finished(self._loop.time() - self._processing.pop(key))
        if key in self._waiting:
            self._line_up(key)

    def close(self) -> None:
        """Give out no more keys; those that are worked on are finished by their workers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._closed = True
        self._ready.release()

    def _line_up(self, key: Key) -> None:
        (self._first if self._urgent(key) else self._others).append(key)
        self._ready.release()

    def _next(self) -> Key:
        urgent = bool(self._first) and not (self._others and self._in_a_row >= URGENT_IN_A_ROW)
        self._in_a_row = self._in_a_row + 1 if urgent else 0
        return (self._first if urgent else self._others).popleft()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

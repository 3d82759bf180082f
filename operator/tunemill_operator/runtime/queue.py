"""The work queue: which FunctionCallFineTune is to be looked at next.

As in client-go: a key waits once however often it is added; it is never worked on twice at the same time; a key that is
added while it is worked on comes again afterwards; failures back off per key and are forgotten on success.
"""

import asyncio
import random
from collections import Counter
from typing import Protocol

from tunemill_operator.runtime.cache import Key

FIRST_BACK_OFF = 0.2
LONGEST_BACK_OFF = 60.0


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

    def __init__(self, observer: QueueObserver) -> None:
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Key | None] = asyncio.Queue()
        self._waiting: dict[Key, float] = {}
        self._processing: dict[Key, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

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
            self._ready.put_nowait(key)

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
        key = await self._ready.get()
        if key is None:
            self._ready.put_nowait(None)  # for the next worker
            raise QueueClosedError
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
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Give out no more keys; those that are worked on are finished by their workers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._ready.put_nowait(None)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

"""The work queue: which FunctionCallFineTune is to be looked at next.

As in client-go: a key waits once however often it is added; it is never worked on twice at the same time; a key that is
added while it is worked on comes again afterwards; failures back off per key and are forgotten on success.

Urgent keys come first, so that after a start among thousands of objects, or when hundreds are made at once, a new
object does not wait until everything else was looked at and told of. While one is worked on, which takes a moment, the
others wait as well: what is asked of the API server for them would take its time. Of the others, each turn of the event
loop gives out one: a look that needs no request gives nobody else a turn, and there may be thousands of them.
"""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from tunemill_operator.runtime.cache import Key

FIRST_BACK_OFF = 0.2
LONGEST_BACK_OFF = 60.0
URGENT_IN_A_ROW = 32
"""After so many urgent keys another one has its turn, however many urgent ones wait."""
MOMENT = 0.5
"""Seconds for which the others wait for an urgent key that is worked on; it may take long."""


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
        self._idle: deque[asyncio.Future[Key]] = deque()
        self._first: deque[Key] = deque()
        self._others: deque[Key] = deque()
        self._in_a_row = 0
        self._closed = False
        self._waiting: dict[Key, float] = {}
        self._processing: dict[Key, float] = {}
        self._urgent_at_work: set[Key] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._next_turn: asyncio.Handle | None = None
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: Counter[Key] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def urgent_pending(self, key: Key) -> bool:
        """Tell whether another key than this one is urgent: what can come later, should."""
        return bool(self._first) or bool(self._urgent_at_work - {key})

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
            self._hand_out()

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
        if self._closed:
            raise QueueClosedError
        worker: asyncio.Future[Key] = self._loop.create_future()
        self._idle.append(worker)
        self._hand_out()
        return await worker

    def done(self, key: Key) -> None:
        """Say that the key is no longer worked on."""
        self._observer.finished(self._loop.time() - self._processing.pop(key))
        self._urgent_at_work.discard(key)
        if key in self._waiting:
            self._line_up(key)
        self._hand_out()

    def close(self) -> None:
        """Give out no more keys; those that are worked on are finished by their workers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._closed = True
        for worker in self._idle:
            if not worker.done():
                worker.set_exception(QueueClosedError())

    def _line_up(self, key: Key) -> None:
        (self._first if self._urgent(key) else self._others).append(key)

    def _hand_out(self) -> None:
        """Give keys to the workers that wait for one."""
        while self._idle and not self._closed:
            if self._idle[0].done():  # its worker was cancelled
                self._idle.popleft()
            elif (key := self._next()) is not None:
                self._take(key)
                self._idle.popleft().set_result(key)
            else:
                return

    def _next(self) -> Key | None:
        """Return the key whose turn it is, None when each that waits has to go on waiting."""
        their_turn = self._in_a_row >= URGENT_IN_A_ROW or not (self._first or self._hold_back())
        if self._others and their_turn and self._next_turn is None:
            self._in_a_row = 0
            self._next_turn = self._loop.call_soon(self._turn_over)
            return self._others.popleft()
        if not self._first:
            return None
        self._in_a_row += 1
        key = self._first.popleft()
        self._urgent_at_work.add(key)
        return key

    def _hold_back(self) -> bool:
        """Tell whether an urgent key is worked on for less than a moment; if so, look again after it."""
        since = max((self._processing[key] for key in self._urgent_at_work), default=-MOMENT)
        left = since + MOMENT - self._loop.time()
        if left <= 0:
            return False
        if self._alarm is None:
            self._alarm = self._loop.call_later(left, self._moment_over)
        return True

    def _turn_over(self) -> None:
        self._next_turn = None
        self._hand_out()

    def _moment_over(self) -> None:
        self._alarm = None
        self._hand_out()

    def _take(self, key: Key) -> None:
        now = self._loop.time()
        self._observer.taken(now - self._waiting.pop(key))
        self._processing[key] = now
        if timer := self._timers.pop(key, None):  # whoever works on it now says anew when to look again
            timer.cancel()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

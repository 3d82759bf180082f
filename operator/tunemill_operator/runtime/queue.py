"""The work queue: which FunctionCallFineTune is reconciled next.

As in client-go: a key waits at most once; it is never processed twice at the same time; a key that is added while it is
processed is processed again afterwards; failures back off per key and are reset on success.

Urgent keys come first, so that a new object does not have to wait for thousands of others after a start, or for status
writes when hundreds are created at once. While an urgent key is processed, which takes a moment, the other keys wait as
well, because their requests would slow it down. Of the other keys, at most one is handed out per iteration of the event
loop: a reconcile without requests does not yield, and there may be thousands.
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
"""After this many urgent keys, one other key is processed."""
MOMENT = 0.5
"""Maximum number of seconds that other keys wait for an urgent key that is being processed."""


class QueueObserver(Protocol):
    """Counts the operations of the queue."""

    def added(self) -> None:
        """A key was added."""

    def taken(self, waited: float) -> None:
        """A key was taken after waiting this many seconds."""

    def finished(self, worked: float) -> None:
        """A key was processed in this many seconds."""

    def retried(self) -> None:
        """A key was added again after a failure."""


class QueueClosedError(Exception):
    """The queue is closed."""


class WorkQueue:
    """Keys to process, now or later. Use it from one event loop only."""

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
        """Return whether another key is urgent, so that less important work should wait."""
        return bool(self._first) or bool(self._urgent_at_work - {key})

    def processing_seconds(self) -> list[float]:
        """Return how long each key in progress has been processed."""
        return [self._loop.time() - since for since in self._processing.values()]

    def add(self, key: Key) -> None:
        """Process the key as soon as a worker is free."""
        if key in self._waiting:
            return
        self._waiting[key] = self._loop.time()
        self._observer.added()
        if key not in self._processing:
            self._line_up(key)
            self._hand_out()

    def add_after(self, key: Key, seconds: float) -> None:
        """Process the key after this many seconds, or earlier if an earlier time was set before."""
        timer, when = self._timers.get(key), self._loop.time() + seconds
        if timer is not None:
            if timer.when() <= when:
                return
            timer.cancel()
        self._timers[key] = self._loop.call_at(when, self._due, key)

    def retry(self, key: Key, at_least: float = 0.0) -> None:
        """Process the key again after a failure, with exponential back-off."""
        back_off = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2 ** min(self._failures[key], 16))
        self._failures[key] += 1
        self._observer.retried()
        self.add_after(key, max(at_least, back_off * random.uniform(0.8, 1.2)))  # noqa: S311 - spreads load

    def forget(self, key: Key) -> None:
        """Reset the failures of the key."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Return the next key. The caller must call `done` afterwards.

        Raises:
            QueueClosedError: the queue was closed. Waiting keys are left to the next process.
        """
        if self._closed:
            raise QueueClosedError
        worker: asyncio.Future[Key] = self._loop.create_future()
        self._idle.append(worker)
        self._hand_out()
        return await worker

    def done(self, key: Key) -> None:
        """Mark the key as processed."""
        self._observer.finished(self._loop.time() - self._processing.pop(key))
        self._urgent_at_work.discard(key)
        if key in self._waiting:
            self._line_up(key)
        self._hand_out()

    def close(self) -> None:
        """Hand out no more keys. Workers finish the keys in progress."""
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
        """Give keys to waiting workers."""
        while self._idle and not self._closed:
            if self._idle[0].done():  # the worker was cancelled
                self._idle.popleft()
            elif (key := self._next()) is not None:
                self._take(key)
                self._idle.popleft().set_result(key)
            else:
                return

    def _next(self) -> Key | None:
        """Return the next key, or None if all keys have to wait."""
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
        """Return whether an urgent key has been processed for less than MOMENT. If so, check again after it."""
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
        if timer := self._timers.pop(key, None):  # this reconcile sets a new time
            timer.cancel()

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)

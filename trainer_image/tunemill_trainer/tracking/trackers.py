"""Sends metrics and files to trackers without delaying or stopping the stage.

Each tracker has a thread and a queue of its own. What a tracker does not take is left out, with a warning.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

_WAITING = 10_000
"""The most metrics and files that wait for a tracker. A tracker that is this far behind gets no more."""
_CLOSE_SECONDS = 30.0
"""How long the end of a stage waits for a tracker."""
_FAILURES = 3
"""After this many failed requests in a row a tracker gets nothing more."""

_log = logging.getLogger(__name__)


class End(Enum):
    """How a stage ended, for the state of the run."""

    CONTINUED = auto()
    """The next stage continues the run."""
    FINISHED = auto()
    FAILED = auto()


@dataclass(frozen=True)
class Metrics:
    """Metrics of a step.

    Attributes:
        values: by name.
        step: the optimizer step.
        time: seconds since the epoch.
    """

    values: Mapping[str, float]
    step: int
    time: float


class Tracker(Protocol):
    """A client of a tracker. Its methods are called in one thread, and may raise any exception."""

    name: str
    """The name in messages."""

    def open(self) -> None:
        """Find the run, or create it."""

    def log(self, metrics: Sequence[Metrics]) -> None:
        """Log metrics of one or more steps."""

    def add_file(self, path: Path) -> None:
        """Upload a file."""

    def close(self, end: "End") -> None:
        """Send what waits, and set the state of the run."""


class Trackers:
    """The trackers of a stage, as a context manager; without trackers, everything is ignored.

    Args:
        trackers: where to log.
        last: whether this is the last stage that logs.
    """

    def __init__(self, trackers: Sequence[Tracker], *, last: bool = False) -> None:
        self._threads = [_TrackerThread(tracker) for tracker in trackers]
        self._end = End.FINISHED if last else End.CONTINUED

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""
        found = Metrics(dict(values), step, time.time())
        for thread in self._threads:
            thread.put(found)

    def add_file(self, path: Path) -> None:
        """Upload a file, which must exist until the end of the block."""
        for thread in self._threads:
            thread.put(path)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.end(self._end if kind is None else End.FAILED)
        deadline = time.monotonic() + _CLOSE_SECONDS
        for thread in self._threads:
            thread.wait(deadline)


class _TrackerThread:
    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._queue: queue.Queue[Metrics | Path | None] = queue.Queue(_WAITING)
        self._end = End.FAILED
        self._full = False
        # A daemon: a request that hangs must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{tracker.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: Metrics | Path) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            if not self._full:
                _log.warning("%s is too slow: leaving out some metrics", self._tracker.name)
            self._full = True

    def end(self, end: End) -> None:
        self._end = end
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            _log.debug("%s has too much to send", self._tracker.name)

    def wait(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            _log.warning("%s did not take all metrics and files within %g s", self._tracker.name, _CLOSE_SECONDS)

    def _work(self) -> None:
        if not self._tried("open the run", self._tracker.open):
            return
        failures, ended = 0, False
        while not ended:
            metrics, files, ended = self._next()
            actions = [("log metrics", partial(self._tracker.log, metrics))] if metrics else []
            actions += [(f"upload {path.name}", partial(self._tracker.add_file, path)) for path in files]
            for what, action in actions:
                failures = 0 if self._tried(what, action) else failures + 1
                if failures == _FAILURES:
                    _log.warning("%s failed %d times in a row: logging nothing more", self._tracker.name, failures)
                    return
        self._tried("end the run", partial(self._tracker.close, self._end))

    def _next(self) -> tuple[list[Metrics], list[Path], bool]:
        """Wait for an item, and return all that wait: metrics, files, and whether the end is among them."""
        found = [self._queue.get()]
        while True:
            try:
                found.append(self._queue.get_nowait())
            except queue.Empty:
                break
        metrics = [item for item in found if isinstance(item, Metrics)]
        return metrics, [item for item in found if isinstance(item, Path)], None in found

    def _tried(self, what: str, action: Callable[[], None]) -> bool:
        """Do something; return whether it worked."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - no error of a tracker may stop a stage
            _log.warning("%s: cannot %s: %s: %s", self._tracker.name, what, type(error).__name__, error)
            return False
        return True

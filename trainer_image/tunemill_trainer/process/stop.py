"""Requests to stop: SIGTERM when a pod is drained, preempted or suspended, and Ctrl-C in a local run."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tunemill_api.constants import ENV_GRACE_SECONDS

from tunemill_trainer.errors import Interrupted
from tunemill_trainer.process import signals

GRACE_SECONDS = 50.0
"""The default time for a stage to stop, below Tunemill's default grace period of 60 s."""


def grace_seconds() -> float:
    """Return how long a stage may take to stop after SIGTERM, as configured by the operator for the pod."""
    try:
        return max(0.0, float(os.environ[ENV_GRACE_SECONDS]))
    except (KeyError, ValueError):
        return GRACE_SECONDS


class StopSignal:
    """Set by a request to stop. Stages check it where they can stop without losing work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether there was a request to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Request to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise Interrupted if there was a request to stop."""
        if self.requested:
            raise Interrupted

    def pause(self, seconds: float) -> None:
        """Wait. A request to stop ends the wait and raises Interrupted."""
        self._event.wait(seconds)
        self.check()

    @contextmanager
    def listening(self, when_late: Callable[[], None], grace_seconds: float) -> Iterator[None]:
        """Handle SIGTERM and SIGINT as requests to stop inside the block.

        Args:
            when_late: called in another thread if the block has not ended `grace_seconds` after the signal. It may
                exit the process at any point, because outputs are committed atomically.
            grace_seconds: the time for the block to end.
        """
        late = threading.Timer(grace_seconds, when_late)
        late.daemon = True

        def handle(_number: int, _frame: FrameType | None) -> None:
            if not self.requested:
                self.request()
                late.start()

        with signals.handling(handle):
            try:
                yield
            finally:
                late.cancel()

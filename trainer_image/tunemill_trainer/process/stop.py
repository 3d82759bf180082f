"""The request to stop: SIGTERM of a pod that is drained, preempted or suspended, Ctrl-C on one machine."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tunemill_api.constants import ENV_GRACE_SECONDS

from tunemill_trainer.errors import Interrupted

GRACE_SECONDS = 50.0
"""How long a stage may take to stop where the pod does not say: below Tunemill's default grace period of 60 s."""


def grace_seconds() -> float:
    """Return how long a stage may take to stop by itself after SIGTERM, which the operator sets for the pod."""
    try:
        return max(0.0, float(os.environ[ENV_GRACE_SECONDS]))
    except (KeyError, ValueError):
        return GRACE_SECONDS


class StopSignal:
    """Set once the process was asked to stop. Stages look at it where stopping loses nothing."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether the process was asked to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask to stop."""
        self._event.set()

    def check(self) -> None:
        """Raise Interrupted if the process was asked to stop."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def listening(self, when_late: Callable[[], None], grace_seconds: float) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into a request to stop until the block ends.

        Args:
            when_late: called in another thread when the block has not ended `grace_seconds` after the signal. It may
                end the process at any point: outputs are committed whole or not at all.
            grace_seconds: how long the block has.
        """
        late = threading.Timer(grace_seconds, when_late)
        late.daemon = True

        def handle(_number: int, _frame: FrameType | None) -> None:
            if not self.requested:
                self.request()
                late.start()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            late.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

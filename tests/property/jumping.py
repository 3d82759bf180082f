"""An event loop whose time jumps to the next timer: hours of leases and back-offs in milliseconds."""

import asyncio
import selectors
from typing import Any


class JumpingLoop(asyncio.SelectorEventLoop):
    """For code that waits for timers only, not for the outside world."""

    def __init__(self) -> None:
        self._passed = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the seconds that have been jumped over."""
        return self._passed

    def jump(self, seconds: float) -> None:
        """Let this time pass."""
        self._passed += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        """Jump over the time that the loop wants to wait."""
        assert timeout is not None, "everybody waits for something that never happens"
        self._loop.jump(max(0.0, timeout))
        return super().select(0)

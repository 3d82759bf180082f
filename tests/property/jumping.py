"""An event loop with simulated time, which jumps to the next timer."""

import asyncio
import selectors
from typing import Any


class JumpingLoop(asyncio.SelectorEventLoop):
    """For code that waits for timers only, not for I/O."""

    def __init__(self) -> None:
        self._passed = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return self._passed

    def jump(self, seconds: float) -> None:
        """Advance the time."""
        self._passed += seconds


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        """Advance the time by the timeout of the select call."""
        assert timeout is not None, "everybody waits for something that never happens"
        self._loop.jump(max(0.0, timeout))
        return super().select(0)

"""Signals of the process, and exit codes of processes that ended by a signal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handling(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Call `handle` for SIGTERM and SIGINT inside the block. Use it in the main thread."""
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(status: int) -> int:
    """Return the exit code of a process from the status of `os.waitpid`: 128 plus the signal, as shells do."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code

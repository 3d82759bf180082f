"""Bounds on what strangers make a stage compute: chat templates are programs, and so are schemas and their patterns.

Whether one of them ends cannot be told by reading it, so it gets so much time of the processor and so much memory.
"""

import os
import resource
import signal
from types import FrameType, TracebackType
from typing import Self

_STATM = "/proc/self/statm"
"""Only Linux has it, and only there the kernel holds a process to its address space."""
_KNOWS_ITS_SIZE = os.path.exists(_STATM)  # noqa: PTH110 - a name for os.open, which costs less at every use than Path
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class OutOfBoundsError(Exception):
    """What was computed needed more than it may; the message says of what."""


class TimeBound:
    """A block that may take so many seconds of the processor; a busy machine makes no difference.

    For the main thread. Costs some microseconds, so that every row may have its own. While a block within it has a
    bound of its own, this one waits.

    Raises:
        OutOfBoundsError: the block took more.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._outer: list[tuple[float, float]] = []
        self._listens = False

    def __enter__(self) -> Self:
        if not self._listens:  # signal.signal costs more than all the rest
            signal.signal(signal.SIGVTALRM, _give_up)
            self._listens = True
        # Again and again: what is raised while an object is being finalized is lost.
        self._outer.append(signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, self._seconds))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, *self._outer.pop())
        if isinstance(error, _OutOfTime):
            raise OutOfBoundsError(f"takes more than {self._seconds:g} s of the processor") from None


class MemoryBound:
    """A block in which the process may take so many bytes beyond what it has; within itself it does nothing.

    Raises:
        OutOfBoundsError: the block wanted more.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and _KNOWS_ITS_SIZE:
            self._before = resource.getrlimit(resource.RLIMIT_AS)
            soft, hard = self._before
            wanted = _address_space() + self._most_bytes
            bound = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)
            resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and _KNOWS_ITS_SIZE:
            resource.setrlimit(resource.RLIMIT_AS, self._before)
        if isinstance(error, MemoryError):
            raise OutOfBoundsError(f"needs more than {self._most_bytes >> 20} MiB of memory") from None


class _OutOfTime(BaseException):
    """Ends whatever runs, also what catches every Exception: templates and schemas are evaluated by what does."""


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _OutOfTime


def _address_space() -> int:
    """Return the bytes of the process's address space."""
    file = os.open(_STATM, os.O_RDONLY)
    try:
        return int(os.read(file, 64).split(None, 1)[0]) * _PAGE_BYTES
    finally:
        os.close(file)

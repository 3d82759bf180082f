"""Limits of CPU time and memory for untrusted input: chat templates, JSON Schemas and their patterns.

These are programs whose evaluation may never end or may use all memory. Python code is limited in this process. A
library in another language may abort the process when an allocation fails, and does not handle signals while it
computes: it is run in a child process first.
"""

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_STATM = "/proc/self/statm"
"""Exists on Linux only, where the kernel enforces the limit of the address space."""
_KNOWS_ITS_SIZE = os.path.exists(_STATM)  # noqa: PTH110 - the path stays a str for os.open, which is faster than Path
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class OutOfBoundsError(Exception):
    """A computation exceeded its limit. The message has the limit."""


class TimeBound:
    """A context manager that limits the CPU time of a block, independent of the load of the machine.

    For the main thread only. It costs a few microseconds, so it can be used for every row. In a nested block, the
    outer limit is paused.

    Raises:
        OutOfBoundsError: the block took more time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._outer: list[tuple[float, float]] = []
        self._listens = False

    def __enter__(self) -> Self:
        if not self._listens:  # signal.signal is the most expensive call here
            signal.signal(signal.SIGVTALRM, _give_up)
            self._listens = True
        # Repeat the signal, because an exception that is raised in a finalizer is ignored.
        self._outer.append(signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds, self._seconds))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, *self._outer.pop())
        if isinstance(error, _OutOfTime):
            raise OutOfBoundsError(f"takes more than {self._seconds:g} s of CPU time") from None


class MemoryBound:
    """A context manager that limits how many more bytes the process may allocate. It has no effect when nested.

    Raises:
        OutOfBoundsError: the block needed more memory.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and _KNOWS_ITS_SIZE:
            self._before = resource.getrlimit(resource.RLIMIT_AS)
            soft, hard = self._before
            limit = _address_space() + self._most_bytes
            limit = limit if soft == resource.RLIM_INFINITY else min(limit, soft)
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and _KNOWS_ITS_SIZE:
            resource.setrlimit(resource.RLIMIT_AS, self._before)
        if isinstance(error, MemoryError):
            raise OutOfBoundsError(f"needs more than {self._most_bytes >> 20} MiB of memory") from None


def try_in_child(function: Callable[[], object], most_bytes: int, seconds: int) -> str:
    """Run a function in a child process with limits; return why it failed, or an empty text.

    Args:
        function: its result is ignored.
        most_bytes: maximum memory, in addition to that of this process.
        seconds: maximum CPU time.
    """
    if not _KNOWS_ITS_SIZE:
        return ""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_the_child(function, most_bytes, seconds, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        message = pipe.read(_LONGEST_MESSAGE)
    status = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    if message:
        return message.decode(errors="replace")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return f"takes more than {seconds} s of CPU time"
    return f"needs more than {most_bytes >> 20} MiB of memory, or crashes the library that parses it"


_LONGEST_MESSAGE = 2000
"""Maximum bytes of a child's error message. It fits into the buffer of a pipe, so the child never blocks."""


def _be_the_child(function: Callable[[], object], most_bytes: int, seconds: int, writing: int) -> None:
    code = 1
    try:
        # Discard the output of a library that crashes.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.disable()  # it would write a traceback when a library aborts
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with MemoryBound(most_bytes):
            function()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the child must never return into the parent's code
        os.write(writing, str(error).encode(errors="replace")[:_LONGEST_MESSAGE])
    finally:
        os._exit(code)


class _OutOfTime(BaseException):
    """The CPU time is used up. A BaseException, because template and schema libraries catch Exception."""


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _OutOfTime


def _address_space() -> int:
    """Return the size of the process's address space in bytes."""
    file = os.open(_STATM, os.O_RDONLY)
    try:
        return int(os.read(file, 64).split(None, 1)[0]) * _PAGE_BYTES
    finally:
        os.close(file)

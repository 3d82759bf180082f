"""Bounds on what strangers make a stage compute: chat templates are programs, and so are schemas and their patterns.

Whether one of them ends cannot be told by reading it, so it gets so much time of the processor and so much memory.
What Python computes is bounded in this process. A library in another language may end the process when it gets no more
memory, and does not listen while it computes: it is tried out in a child process first.
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


def try_in_child(function: Callable[[], object], most_bytes: int, seconds: int) -> str:
    """Run a function in a child process with limits, and return why it failed; an empty text when it did not.

    Args:
        function: its result is dropped.
        most_bytes: of memory beyond what this process has.
        seconds: of the processor.
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
        said = pipe.read(_LONGEST_ANSWER)
    status = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    if said:
        return said.decode(errors="replace")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        return f"takes more than {seconds} s of the processor"
    return f"needs more than {most_bytes >> 20} MiB of memory, or breaks the library that reads it"


_LONGEST_ANSWER = 2000
"""Bytes that a child may say of its failure; it fits into a pipe that nobody reads from yet."""


def _be_the_child(function: Callable[[], object], most_bytes: int, seconds: int, writing: int) -> None:
    code = 1
    try:
        # What a library says when it dies is for its authors.
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.disable()  # where it is on, it writes a traceback for the signal of a library that gives up
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        with MemoryBound(most_bytes):
            function()
        code = 0
    except BaseException as error:  # noqa: BLE001 - nothing of this process may go on in the parent's code
        os.write(writing, str(error).encode(errors="replace")[:_LONGEST_ANSWER])
    finally:
        os._exit(code)


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

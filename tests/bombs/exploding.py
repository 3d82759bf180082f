"""Runs code that may exhaust memory in a separate process, and measures the memory that it takes."""

import ctypes
import multiprocessing
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_M_MMAP_THRESHOLD = -3
# What the process has freed and malloc keeps may be taken again beyond a bound on new memory. With a fixed threshold
# every large block is given back when it is freed; by default malloc keeps blocks of up to 32 MiB.
ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 << 10)

_FUSE = 4 << 30
"""The memory limit of the process, so that a failing test does not affect the machine."""


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        value: what the function returned.
        mib: by how much the largest resident size of the process has grown.
    """

    value: Any
    mib: int


def explode(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Run a function in a forked process and return its result. It must not raise or end the process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(theirs, function, arguments))
    child.start()
    theirs.close()
    try:
        value, mib = ours.recv()
    except EOFError:
        child.join()
        raise AssertionError(f"the process ended with {child.exitcode}") from None
    child.join()
    if isinstance(value, BaseException):
        raise AssertionError(f"{type(value).__name__}: {str(value)[:200]}") from value
    return Outcome(value, mib)


def _run(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with Path("/proc/self/statm").open(encoding="ascii") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + _FUSE, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        value = function(*arguments)
    except BaseException as error:  # noqa: BLE001 - the test says what it makes of it
        value = error
    pipe.send((value, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10))

"""Recognizes out-of-memory errors in all forms in which libraries raise them.

A pass that does not fit is not a failure: `attempt` returns a Shortage, and the caller retries with settings that need
less memory. `memory_settings` decides which.
"""

import gc
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")

_ALLOCATION_FAILED = re.compile(
    r"""
    out\ of\ memory                         # PyTorch, the CUDA runtime as torch.AcceleratorError, Triton's launcher
    | \b(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_ALLOC_FAILED
    | \bCUFFT_ALLOC_FAILED
    | DEVICE_ALLOCATION_FAILED              # cuDNN 9
    | cudaErrorMemoryAllocation
    | can't\ allocate\ memory               # PyTorch's allocator of the host's memory
    """,
    re.VERBOSE | re.IGNORECASE,
)
_UNITS = {"bytes": 1 / 2**20, "KiB": 1 / 2**10, "MiB": 1.0, "GiB": 2.0**10, "TiB": 2.0**20}
_SIZE = r"([\d.]+) (bytes|[KMGT]iB)"


@dataclass(frozen=True)
class Shortage:
    """The details of an out-of-memory error, in MiB; 0 if the library did not report a figure.

    Attributes:
        requested: the allocation that failed.
        allocated: memory in use by the process.
        free: free memory of the device.
        reserved: memory that PyTorch has reserved but not allocated, in blocks that were too small.
        capacity: total memory of the device.
        message: the first line of the error.
    """

    requested: int = 0
    allocated: int = 0
    free: int = 0
    reserved: int = 0
    capacity: int = 0
    message: str = ""

    @property
    def needed(self) -> int:
        """The least memory that would have been enough, in MiB: in use plus requested."""
        return self.allocated + self.requested

    @property
    def available(self) -> int:
        """The memory of the device that the process could use, in MiB."""
        return self.allocated + self.reserved + self.free

    @property
    def is_fragmentation(self) -> bool:
        """Whether enough memory was free, but fragmented: the same work may fit after the cache is released."""
        return 0 < self.requested <= self.free + self.reserved


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error or one of its causes is an out-of-memory error.

    Triton's OutOfResources is none: it is about the registers and shared memory of a block, which a smaller batch
    does not change.
    """
    return any(_is_allocation_error(cause) for cause in _causes(error))


def attempt(work: Callable[[], T]) -> T | Shortage:
    """Return the result of `work`, or a Shortage if memory was not enough.

    The memory of the failed attempt is released before the return. An exception refers to the tensors of all frames
    that it passed, so a retry must not happen while it is being handled.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = shortage_of(error)
    release()
    return shortage


def shortage_of(error: BaseException) -> Shortage:
    """Parse an error for which `is_out_of_memory` is true. Allocates nothing on a device."""
    text = next((text for text in map(str, _causes(error)) if _ALLOCATION_FAILED.search(text)), str(error))
    return Shortage(
        requested=_mib(rf"Tried to allocate {_SIZE}", text) or _mib(rf"you tried to allocate {_SIZE}", text),
        allocated=_mib(rf"{_SIZE} is allocated by PyTorch", text),
        free=_mib(rf"of which {_SIZE} is free", text),
        reserved=_mib(rf"{_SIZE} is reserved by PyTorch but unallocated", text),
        capacity=_mib(rf"total capacity of {_SIZE}", text),
        message=(text.splitlines() or [""])[0],
    )


def release() -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def watched_log(name: str) -> Iterator[None]:
    """Turn a RuntimeError in the block into an out-of-memory error if the library only logged that cause.

    Args:
        name: the name of the library's logger.
    """
    logged = _OutOfMemoryRecords()
    logger = logging.getLogger(name)
    level = logger.level
    # Warnings are needed here even if the process has silenced the library.
    logger.setLevel(min(level, logging.WARNING))
    logger.addHandler(logged)
    try:
        yield
    except RuntimeError as error:
        if logged.message and not is_out_of_memory(error):
            raise RuntimeError(logged.message) from error
        raise
    finally:
        logger.removeHandler(logged)
        logger.setLevel(level)


class _OutOfMemoryRecords(logging.Handler):
    """Stores the first log line about a failed allocation."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().splitlines()
        self.message = self.message or next((line for line in lines if _ALLOCATION_FAILED.search(line)), "")


def _is_allocation_error(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Triton, cuBLAS and cuDNN raise RuntimeError. torch.AcceleratorError, of the CUDA runtime, is one, too.
    return isinstance(error, RuntimeError) and _ALLOCATION_FAILED.search(str(error)) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _mib(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return -int(-float(found[1]) * _UNITS[found[2]] // 1) if found else 0

"""Memory that is not enough: the one place that recognises it, in every form in which libraries report it.

A pass that does not fit is no failure: `attempt` returns a Shortage, the caller asks for less memory and tries again.
What computes with less is decided in `memory_ladder`.
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
    """What is known about memory that was not enough, in MiB; 0 where the library did not say.

    Attributes:
        requested: the allocation that failed.
        allocated: what the process had in use when it failed.
        free: what the device had left.
        reserved: what PyTorch held without using it, in pieces that were too small.
        capacity: of the device.
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
        """The least that would have been needed, in MiB: what was in use and what was requested."""
        return self.allocated + self.requested

    @property
    def available(self) -> int:
        """What the process could use of the device, in MiB."""
        return self.allocated + self.reserved + self.free

    @property
    def is_fragmentation(self) -> bool:
        """Whether there was enough memory, but not in one piece: the same work may fit once the pieces are returned."""
        return 0 < self.requested <= self.free + self.reserved


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, says that memory was not enough.

    Triton's OutOfResources is not among them: it is about the registers and the shared memory of one block, which less
    work at once would not change.
    """
    return any(_says_so(cause) for cause in _causes(error))


def attempt(work: Callable[[], T]) -> T | Shortage:
    """Return what `work` returns, or the shortage for which it could not end.

    When it returns a Shortage, the failed attempt holds no memory any more. An exception keeps the tensors of all
    frames that it went through, so nothing may be tried again, nor allocated, while it is handled.
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
    """Read an error for which `is_out_of_memory` holds. Allocates nothing on a device."""
    said = next((text for text in map(str, _causes(error)) if _ALLOCATION_FAILED.search(text)), str(error))
    return Shortage(
        requested=_mib(rf"Tried to allocate {_SIZE}", said) or _mib(rf"you tried to allocate {_SIZE}", said),
        allocated=_mib(rf"{_SIZE} is allocated by PyTorch", said),
        free=_mib(rf"of which {_SIZE} is free", said),
        reserved=_mib(rf"{_SIZE} is reserved by PyTorch but unallocated", said),
        capacity=_mib(rf"total capacity of {_SIZE}", said),
        message=(said.splitlines() or [""])[0],
    )


def release() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def watched_log(name: str) -> Iterator[None]:
    """Have an error that leaves the block tell of a lack of memory that a library has only logged.

    Args:
        name: of the library's logger.
    """
    logged = _OutOfMemoryRecords()
    logger = logging.getLogger(name)
    level = logger.level
    # Where the process has silenced the library, its warnings are wanted all the same.
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
    """Keeps the first line of a log that tells of a lack of memory."""

    message = ""

    def emit(self, record: logging.LogRecord) -> None:
        lines = record.getMessage().splitlines()
        self.message = self.message or next((line for line in lines if _ALLOCATION_FAILED.search(line)), "")


def _says_so(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    # Triton, cuBLAS and cuDNN raise RuntimeError; so is torch.AcceleratorError, for errors of the CUDA runtime.
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

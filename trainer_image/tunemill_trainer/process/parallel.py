"""Maps a function over batches in worker processes. Results are in order, and few batches are in memory at once."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_MOST = 8
"""Maximum number of workers. More workers take memory, and the main process cannot keep up with their results."""
_AHEAD = 2
"""Submitted batches per worker."""

_MOST_BYTES = 8 << 20
"""Maximum size of a batch, not counting its last item."""

_NEW_OBJECTS = 50_000
"""Threshold of the garbage collector in workers. Rows have no reference cycles; the default takes 1/6 of the time."""

_function: Callable[[Any], Any]
"""The function of a worker process."""


def ordered_map(function: Callable[[T], R], batches: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the results in the order of the batches.

    Workers are forked, so that they share large objects of the function, such as a tokenizer. With a single batch, a
    single worker, or on systems without a safe fork, the function runs in this process.

    Raises:
        MemoryError: when a worker was killed, presumably by the kernel's OOM killer.
    """
    remaining, workers = iter(batches), min(workers, _MOST)
    first = list(islice(remaining, 2))
    if len(first) < 2 or workers < 2 or sys.platform != "linux":
        yield from map(function, chain(first, remaining))
        return
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(function,))
    waiting: deque[Future[R]] = deque()
    try:
        for batch in chain(first, remaining):
            waiting.append(pool.submit(_call, batch))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise MemoryError("a worker process was killed") from error
    finally:
        pool.shutdown(cancel_futures=True)


def batches(items: Iterable[T], size: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield the items in lists. Items are consumed lazily.

    Args:
        items: the items.
        size: maximum number of items of a list. Lists with large items are shorter, to limit the memory.
        size_of: returns the approximate size of an item in bytes.
    """
    batch, bytes_ = list[T](), 0
    for item in items:
        batch.append(item)
        bytes_ += size_of(item)
        if len(batch) >= size or bytes_ >= _MOST_BYTES:
            yield batch
            batch, bytes_ = [], 0
    if batch:
        yield batch


def _begin(function: Callable[[Any], Any]) -> None:
    global _function  # noqa: PLW0603 - set once per process
    _function = function
    # Keep the objects of the main process in shared pages.
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    # The main process decides when to stop. Its signal handlers would write a report in the worker.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _call(batch: Any) -> Any:  # noqa: ANN401 - the types are those of ordered_map
    return _function(batch)


def _end_with_the_main_process() -> None:
    """Exit when the main process dies. Its pipes stay open then, because the other workers have them, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

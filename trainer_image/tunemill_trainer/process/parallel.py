"""Maps a function over batches with all CPUs that the pod has, in order, and with a bounded number of them at once."""

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
"""Workers at most: the one process that puts their results into order keeps up with no more, and each takes memory."""
_AHEAD = 2
"""Batches a worker that wait for it, or for the batches before them."""

_MOST_BYTES = 8 << 20
"""Of a batch, but for its last item."""

_NEW_OBJECTS = 50_000
"""After so many a worker looks for cycles of references. Rows have none; the search took a sixth of its time."""

_function: Callable[[Any], Any]
"""Of a worker process."""


def ordered_map(function: Callable[[T], R], batches: Iterable[T], workers: int) -> Iterator[R]:
    """Yield the results in the order of the batches.

    Workers are forked, so that the function may hold what takes long to make, such as a tokenizer. One batch alone, one
    worker and systems without a safe fork make no process.

    Raises:
        MemoryError: when a worker was killed, which only the kernel does, and for that reason.
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
    """Yield lists of at most so many items; no item is taken before its list is asked for.

    Args:
        items: to yield.
        size: the most items of a list. Large ones make shorter lists, as several lists wait at once.
        size_of: the bytes that an item takes, roughly.
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
    global _function  # noqa: PLW0603 - what a process is for
    _function = function
    # What the main process has made stays where it is, and shared.
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS)
    # The main process decides when to stop; its handlers would write a report of their own from here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _call(batch: Any) -> Any:  # noqa: ANN401 - the types are those of ordered_map
    return _function(batch)


def _end_with_the_main_process() -> None:
    """A main process that is killed closes no pipe that its other workers hold too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)

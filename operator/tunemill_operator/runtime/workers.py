"""Workers that take keys from the queue and reconcile them concurrently."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from tunemill_operator.kube.errors import ConflictError, KubeError
from tunemill_operator.runtime.cache import Key
from tunemill_operator.runtime.queue import QueueClosedError, WorkQueue
from tunemill_operator.runtime.reconciliation import Reconciliation, current

log = logging.getLogger(__name__)

FINISH_SECONDS = 2.0
"""Time for running reconciles to finish. A leader that has lost its Lease has only seconds until the next one
starts."""


class WorkObserver(Protocol):
    """Observes the reconciles of the workers."""

    def reconciled(self, result: str, seconds: float) -> None:
        """A reconcile ended with this result (success, conflict, error) after this many seconds."""


async def work(
    queue: WorkQueue, reconcile: Callable[[Key], Awaitable[None]], workers: int, observers: Sequence[WorkObserver]
) -> None:
    """Process keys until cancelled. Running reconciles then have FINISH_SECONDS to finish."""
    tasks = [asyncio.create_task(_work(queue, reconcile, observers), name=f"worker-{i}") for i in range(workers)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        queue.close()
        _, late = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
        for task in late:
            task.cancel()


async def _work(
    queue: WorkQueue, reconcile: Callable[[Key], Awaitable[None]], observers: Sequence[WorkObserver]
) -> None:
    with contextlib.suppress(QueueClosedError):
        while True:
            key = await queue.get()
            current.set(Reconciliation(key))
            started = time.monotonic()
            result = await _reconciled(queue, reconcile, key)
            seconds = time.monotonic() - started
            for observer in observers:
                observer.reconciled(result, seconds)
            current.set(None)
            queue.done(key)


async def _reconciled(queue: WorkQueue, reconcile: Callable[[Key], Awaitable[None]], key: Key) -> str:
    """Reconcile one key. A failure affects only this key, which is retried."""
    try:
        await reconcile(key)
    except ConflictError as error:  # the cache is behind; the watch will update it
        log.debug("retrying: %s", error)
        queue.retry(key)
        return "conflict"
    except KubeError as error:
        log.warning("retrying: %s", error)
        queue.retry(key, error.retry_after or 0.0)
        return "error"
    except Exception:
        log.exception("reconciling failed")
        queue.retry(key)
        return "error"
    queue.forget(key)
    return "success"

"""Compares the caches with complete lists: before work starts, after a watch has started, and periodically.

A watch alone is not sufficient: it starts with a list, and deletions before that list cause no event.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tunemill_operator.kube.client import FINETUNES, JOBS, PODS, PROFILES, KubeClient, Resource
from tunemill_operator.kube.errors import KubeError, NotFoundError, RefusedError
from tunemill_operator.runtime.cache import Cache, Key, Store, uid_of
from tunemill_operator.runtime.queue import WorkQueue

log = logging.getLogger(__name__)

WAIT_SECONDS = 5.0
"""Interval between checks for the CRD, the permissions and the API server before work starts."""
LISTED_SECONDS = 3.0
"""The caches are compared this long after a watch has sent the last object of its initial list."""
FIRST_LOOK_SECONDS = 1.0
"""Objects that existed before the start are reconciled this long after the initial lists."""


class KindsChangedError(Exception):
    """The API server serves other kinds than when the watches started. The process must restart."""


class ResyncObserver(Protocol):
    """Counts the results of comparisons."""

    def diverged(self, objects: int) -> None:
        """A comparison found this many objects that differed from the caches."""


@dataclass
class Resync:
    """Keeps the caches up to date."""

    client: KubeClient
    cache: Cache
    queue: WorkQueue
    observer: ResyncObserver
    namespaces: Sequence[str]
    """Empty means all."""
    profiles: bool = True
    """Whether FineTuneProfiles are used."""
    profiles_served: bool = False
    """Whether their CRD is installed: the CRDs of a cluster may be older than the operator."""
    last: float = field(default_factory=time.monotonic)
    """Time of the last comparison, on the monotonic clock."""
    _listed: asyncio.Event = field(default_factory=asyncio.Event)
    _last_listed_at: float = 0.0

    async def fill_caches(self) -> None:
        """Fill the caches and enqueue urgent objects. If that is not possible, log why and retry."""
        logged = ""
        while True:
            try:
                # kopf would silently never watch a kind that discovery does not list yet.
                await self.client.check_discovered(FINETUNES)
                self.profiles_served = await self._profiles_discovered()
                await self._compare()
                break
            except KubeError as error:
                message = _watch_problem(error)
                if message != logged:
                    log.warning("%s; looking again every %.0f s", message, WAIT_SECONDS)
                    logged = message
            await asyncio.sleep(WAIT_SECONDS)
        if self.profiles and not self.profiles_served:
            log.warning("the CRD of FineTuneProfile is not installed, no profile applies: apply the operator's CRDs")
        for key in filter(self.cache.unserved, self.cache.finetunes.keys()):
            self.queue.add(key)

    def listed(self) -> None:
        """A watch has sent an object of its initial list. Deletions before it are found by the next comparison."""
        self._last_listed_at = asyncio.get_running_loop().time()
        self._listed.set()

    async def run(self, period: float) -> None:
        """Compare the caches about every `period` seconds and after `listed`, until cancelled.

        Changed objects are enqueued immediately. All objects are enqueued once per period, so that changes without an
        event, such as passed time, take effect. The first time is after the watches have sent their initial lists:
        while thousands of objects are reconciled, new objects would have to wait.

        Raises:
            KindsChangedError: a CRD was installed or removed.
        """
        self.listed()  # kopf sends no event for a kind that was missing when it looked
        clock = asyncio.get_running_loop().time
        await self._wait_until_idle(FIRST_LOOK_SECONDS)
        next_scan = clock()
        while True:
            if clock() >= next_scan:
                self._enqueue_all()
                next_scan = clock() + period * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
            await self._wait_for_next(next_scan)
            await self._enqueue_missed()

    async def _enqueue_missed(self) -> None:
        """Compare the caches with complete lists, and enqueue what a watch has missed."""
        try:
            if not self.profiles_served and await self._profiles_discovered():
                raise KindsChangedError("the CRD of FineTuneProfile was installed")
            missed, keys = await self._compare()
        except NotFoundError as error:
            raise KindsChangedError(f"a CRD was removed: {error}") from error
        except KindsChangedError:
            raise
        except KubeError as error:
            log.warning("the caches could not be compared: %s", error)
        except Exception:  # retried with the next comparison; the rest of the operator continues
            log.exception("the caches could not be compared")
        else:
            self.observer.diverged(missed)
            for key in keys:
                self.queue.add(key)

    async def _wait_for_next(self, latest: float) -> None:
        """Wait until `latest` on the loop's clock, or until a watch has sent its initial list."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(latest):
                await self._listed.wait()
                await self._wait_until_idle(LISTED_SECONDS)
        self._listed.clear()

    async def _wait_until_idle(self, seconds: float) -> None:
        """Wait until no watch has sent an object of its initial list for `seconds`."""
        while (left := self._last_listed_at + seconds - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110 - the time changes
            await asyncio.sleep(left)

    async def _profiles_discovered(self) -> bool:
        if not self.profiles:
            return False
        try:
            await self.client.check_discovered(PROFILES)
        except NotFoundError:
            return False
        return True

    async def _compare(self) -> tuple[int, Sequence[Key]]:
        """List everything into the caches. Return the number of objects that a watch had missed, and their keys."""
        cache, changed = self.cache, list[Key]()
        profiles = await self._list(PROFILES, cache.profiles, None) if self.profiles_served else []
        kinds = ((FINETUNES, cache.finetunes), (JOBS, cache.jobs), (PODS, cache.pods))
        for namespace in self.namespaces or (None,):
            # The API server prepares the pages of one kind while those of another are processed.
            for keys in await asyncio.gather(*(self._list(resource, store, namespace) for resource, store in kinds)):
                changed += keys
        self.last = time.monotonic()
        # A profile may apply to every object.
        return len(profiles) + len(changed), cache.finetunes.keys() if profiles else changed

    async def _list(self, resource: Resource, store: Store[Any], namespace: str | None) -> list[Key]:
        """List a kind into its cache. Return the keys of new, changed and deleted objects."""
        listed: set[str] = set()
        changed: list[Key] = []
        version = 0
        async for items, version in self.client.pages(resource, namespace):  # noqa: B007 - that of the last page
            listed.update(map(uid_of, items))
            changed += [key for item in items if (key := store.put(item)) is not None]
            del items  # free the memory before the next page arrives
        return changed + store.prune(listed, version, namespace)

    def _enqueue_all(self) -> None:
        for key in {*self.cache.finetunes.keys(), *self.cache.jobs.keys(), *self.cache.pods.keys()}:
            self.queue.add(key)


def _watch_problem(error: KubeError) -> str:
    if isinstance(error, NotFoundError):
        return "the CRD of FunctionCallFineTune is not installed: apply crds/ or install the chart with crds.enabled"
    if isinstance(error, RefusedError):
        return f"the operator lacks permission to list what it watches, its Role or ClusterRole lacks a rule: {error}"
    return f"the API server does not respond: {error}"

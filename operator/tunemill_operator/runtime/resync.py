"""Compares the caches with complete lists: before the work begins, when a watch was taken up, and every few minutes.

A watch alone is not enough: it is taken up with a list, and the deletions that fell into the gap before are not told.
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
"""Between two looks for what has to be there first: the CRD, the permissions, the API server."""
LISTED_SECONDS = 3.0
"""The caches are compared so long after a watch has told the last object of its list."""
FIRST_LOOK_SECONDS = 1.0
"""So long after that, what was there before the start is looked at for the first time."""


class KindsChangedError(Exception):
    """Other kinds are served than when the watches began: the process has to begin anew."""


class ResyncObserver(Protocol):
    """Counts what a resync found."""

    def diverged(self, objects: int) -> None:
        """So many objects differed from what the caches held."""


@dataclass
class Resync:
    """Keeps the caches honest."""

    client: KubeClient
    cache: Cache
    queue: WorkQueue
    observer: ResyncObserver
    namespaces: Sequence[str]
    """Empty means all."""
    profiles: bool = True
    """Whether FineTuneProfiles are to be read."""
    profiles_served: bool = False
    """Whether they can be: a cluster's CRDs may be older than the operator."""
    last: float = field(default_factory=time.monotonic)
    """When the caches were last compared, on the monotonic clock."""
    _listed: asyncio.Event = field(default_factory=asyncio.Event)
    _last_listed_at: float = 0.0

    async def fill_caches(self) -> None:
        """Fill the caches and enqueue what is urgent; wait, and say for what, while that is not possible."""
        logged = ""
        while True:
            try:
                # A watch of a kind that discovery does not name yet would never begin, and nobody would notice.
                await self.client.check_discovered(FINETUNES)
                self.profiles_served = await self._profiles_discovered()
                await self._compare()
                break
            except KubeError as error:
                message = _what_is_missing(error)
                if message != logged:
                    log.warning("%s; looking again every %.0f s", message, WAIT_SECONDS)
                    logged = message
            await asyncio.sleep(WAIT_SECONDS)
        if self.profiles and not self.profiles_served:
            log.warning("the CRD of FineTuneProfile is not installed, no profile holds: apply the operator's CRDs")
        for key in filter(self.cache.unserved, self.cache.finetunes.keys()):
            self.queue.add(key)

    def listed(self) -> None:
        """A watch was taken up: it told an object of its list. What was deleted before that is found a moment later."""
        self._last_listed_at = asyncio.get_running_loop().time()
        self._listed.set()

    async def run(self, period: float) -> None:
        """Compare the caches about every `period` seconds and after `listed`, until cancelled.

        What has changed is enqueued at once, everything once a period: then even a change that no list shows, such as
        time that has passed, is acted upon. For the first time that is when the watches have told their lists: among
        thousands of objects nobody hears of a new one while all are looked at.

        Raises:
            KindsChangedError: when a CRD has come or gone.
        """
        self.listed()  # kopf is silent about a kind that was gone just when it looked
        clock = asyncio.get_running_loop().time
        await self._wait_until_quiet(FIRST_LOOK_SECONDS)
        while True:
            self._enqueue_all()
            whole = clock() + period * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
            while clock() < whole:
                await self._wait_for_next(whole)
                try:
                    if not self.profiles_served and await self._profiles_discovered():
                        raise KindsChangedError("the CRD of FineTuneProfile is installed by now")
                    missed, keys = await self._compare()
                    self.observer.diverged(missed)
                    for key in keys:
                        self.queue.add(key)
                except NotFoundError as error:
                    raise KindsChangedError(f"a CRD was removed: {error}") from error
                except KubeError as error:
                    log.warning("the caches could not be compared: %s", error)
                except KindsChangedError:
                    raise
                except Exception:  # the operator serves whom it can, and looks again
                    log.exception("the caches could not be compared")

    async def _wait_for_next(self, latest: float) -> None:
        """Return at that time on the loop's clock, or when a watch has told its whole list."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(latest):
                await self._listed.wait()
                await self._wait_until_quiet(LISTED_SECONDS)
        self._listed.clear()

    async def _wait_until_quiet(self, seconds: float) -> None:
        """Return when no watch has told an object of its list for so long."""
        while (left := self._last_listed_at + seconds - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110 - it moves on
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
        """List everything into the caches; return how many objects a watch had missed, and the keys they concern."""
        cache, changed = self.cache, list[Key]()
        profiles = await self._list(PROFILES, cache.profiles, None) if self.profiles_served else []
        kinds = ((FINETUNES, cache.finetunes), (JOBS, cache.jobs), (PODS, cache.pods))
        for namespace in self.namespaces or (None,):
            # The API server makes the pages of one kind while those of another are taken in.
            for keys in await asyncio.gather(*(self._list(resource, store, namespace) for resource, store in kinds)):
                changed += keys
        self.last = time.monotonic()
        # A profile may hold for every object.
        return len(profiles) + len(changed), cache.finetunes.keys() if profiles else changed

    async def _list(self, resource: Resource, store: Store[Any], namespace: str | None) -> list[Key]:
        """List a kind into its cache; return the keys that what was new or gone concerns."""
        listed: set[str] = set()
        changed: list[Key] = []
        version = 0
        async for items, version in self.client.pages(resource, namespace):  # noqa: B007 - that of the last page
            listed.update(map(uid_of, items))
            changed += [key for item in items if (key := store.put(item)) is not None]
            del items  # before the next page comes
        return changed + store.prune(listed, version, namespace)

    def _enqueue_all(self) -> None:
        for key in {*self.cache.finetunes.keys(), *self.cache.jobs.keys(), *self.cache.pods.keys()}:
            self.queue.add(key)


def _what_is_missing(error: KubeError) -> str:
    if isinstance(error, NotFoundError):
        return "the CRD of FunctionCallFineTune is not installed: apply crds/ or install the chart with crds.enabled"
    if isinstance(error, RefusedError):
        return f"the operator may not read what it watches, its Role or ClusterRole lacks a rule: {error}"
    return f"the API server does not answer: {error}"

"""Leader election on a Lease.

The rules that make it safe:
- every call is bounded, and none runs past the leader's deadline;
- a leader counts from the start of its last successful renewal and stops `deadline` seconds later, before a follower
  may take over after `duration` seconds;
- a follower judges expiry on its own monotonic clock, from when it saw the record change: clocks of different machines
  are never compared;
- a write is a compare-and-swap on the resource version;
- `holds()` tells those who write for the leader whether anybody else can lead by now: a process that was frozen wakes
  up in the middle of its work;
- a clean end gives the Lease back, and followers look twice a period, so that the hand-over takes half of one.

kubernetes.aio has an elector too; that of release 37 fails in its first call, bounds no call and gives nothing back.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from tunemill_operator.kube.client import LEASES, Resource
from tunemill_operator.kube.errors import ConflictError, KubeError, NotFoundError

log = logging.getLogger(__name__)

Json = dict[str, Any]


class Leases(Protocol):
    """The three requests that an election needs."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the Lease."""

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create the Lease."""

    async def replace(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Replace the Lease, provided that it has not changed."""


@dataclass(frozen=True)
class Election:
    """Which Lease is fought for, by whom and how patiently.

    Attributes:
        name: the Lease's name.
        namespace: the Lease's namespace.
        identity: who the candidate is; different for every process.
        duration: seconds after which followers take a Lease that is not renewed.
        deadline: seconds after which a leader that cannot renew stops.
        period: seconds between two renewals; a follower looks after half of it.
    """

    name: str
    namespace: str
    identity: str
    duration: float = 15.0
    deadline: float = 10.0
    period: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration > self.deadline > self.period:
            raise ValueError("duration > deadline > period must hold")


class Elector:
    """One candidate."""

    def __init__(self, leases: Leases, election: Election, leading: Callable[[bool], None]) -> None:
        """`leading` is told when leadership begins and ends."""
        self._leases = leases
        self._election = election
        self._leading = leading
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._held_until = 0.0

    def holds(self) -> bool:
        """Return whether nobody else can hold the Lease yet."""
        return asyncio.get_running_loop().time() < self._held_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, run `lead()` while holding it, and cancel it when the Lease is lost.

        Returns when `lead()` has ended or the Lease is lost, and raises what `lead()` raised. The caller ends the
        process then: a fresh one has no stale state.
        """
        held_since = await self._acquire()
        self._held_until = held_since + self._election.duration
        self._leading(True)
        log.info("leading as %s", self._election.identity)
        work = asyncio.ensure_future(lead())
        try:
            await self._hold(work, held_since)
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._leading(False)
            await self._release()
        if not work.cancelled():
            work.result()

    async def _acquire(self) -> float:
        said = ""
        while True:
            started = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._call_limit()):
                    if await self._try():
                        return started
            except (KubeError, TimeoutError) as error:
                message = str(error) or "no answer in time"
                if message != said:
                    log.warning("the Lease %s could not be read or taken: %s", self._election.name, message)
                    said = message
            await asyncio.sleep(self._pause() / 2)

    async def _hold(self, work: "asyncio.Future[None]", renewed: float) -> None:
        """Renew until the work ends, somebody else holds the Lease, or no renewal has succeeded for too long."""
        deadline = self._election.deadline
        while (left := renewed + deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait({work}, timeout=min(self._pause(), left))
            if work.done():
                return
            started = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(min(self._call_limit(), max(0.0, renewed + deadline - started))):
                    if not await self._try():
                        self._held_until = 0.0
                        log.error("another operator holds the Lease now: stopping")
                        return
                renewed = started
                self._held_until = renewed + self._election.duration
            except (KubeError, TimeoutError) as error:
                log.warning("the Lease could not be renewed: %s", error or "no answer in time")
        log.error("the Lease could not be renewed for %.0f s: stopping", deadline)

    async def _try(self) -> bool:
        """Take or renew the Lease in one compare-and-swap; tell whether it is held now."""
        election, now = self._election, _now()
        try:
            lease = await self._leases.get(LEASES, election.namespace, election.name)
        except NotFoundError:
            return await self._swapped(self._leases.create(LEASES, election.namespace, self._new(now)))
        spec = lease.setdefault("spec", {})
        holder = spec.get("holderIdentity") or ""
        record = (holder, str(spec.get("renewTime")))
        if record != self._seen:
            self._seen, self._seen_at = record, asyncio.get_running_loop().time()
        if holder not in ("", election.identity):
            expires = spec.get("leaseDurationSeconds") or election.duration
            if asyncio.get_running_loop().time() - self._seen_at < expires:
                return False
        if holder != election.identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
        spec.update(holderIdentity=election.identity, renewTime=now, leaseDurationSeconds=int(election.duration))
        return await self._swapped(self._leases.replace(LEASES, election.namespace, lease))

    def _new(self, now: str) -> Json:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._election.name, "namespace": self._election.namespace},
            "spec": {
                "holderIdentity": self._election.identity,
                "leaseDurationSeconds": int(self._election.duration),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }

    async def _release(self) -> None:
        """Give the Lease back, if it is still held; without an answer it expires."""
        election = self._election
        with contextlib.suppress(KubeError, TimeoutError):
            async with asyncio.timeout(election.period):
                lease = await self._leases.get(LEASES, election.namespace, election.name)
                if lease["spec"].get("holderIdentity") == election.identity:
                    lease["spec"].update(holderIdentity="", renewTime=_now())
                    await self._leases.replace(LEASES, election.namespace, lease)

    async def _swapped(self, request: Awaitable[Json]) -> bool:
        try:
            await request
        except ConflictError:
            # Somebody else was faster, or ourselves: a request whose answer is lost is sent again below us.
            lease = await self._leases.get(LEASES, self._election.namespace, self._election.name)
            return bool(lease.get("spec", {}).get("holderIdentity") == self._election.identity)
        return True

    def _call_limit(self) -> float:
        return min(self._election.period * 2, self._election.deadline / 2)

    def _pause(self) -> float:
        return self._election.period * random.uniform(0.8, 1.2)  # noqa: S311 - keeps candidates apart


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

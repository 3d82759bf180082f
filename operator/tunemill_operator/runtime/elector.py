"""Leader election with a Lease.

Rules for safety:
- Every request has a timeout that ends before the leader's deadline.
- A leader counts from the start of its last successful renewal. It stops after `deadline` seconds, before a follower
  may take over after `duration` seconds.
- A follower determines expiry with its own monotonic clock, from when it observed a change of the record. Clocks of
  different machines are never compared.
- A write is a compare-and-swap on the resource version.
- `holds()` returns whether no other process can lead yet. Writers check it, because a suspended process may continue in
  the middle of its work.
- A clean shutdown releases the Lease. Followers check it twice per period, so the hand-over takes half a period.

The elector of kubernetes.aio (release 37) is not used: it fails in its first request, has no timeouts and releases
nothing.
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
    """The requests for an election."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the Lease."""

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create the Lease."""

    async def replace(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Replace the Lease if it has not changed."""


@dataclass(frozen=True)
class Election:
    """Settings of a leader election.

    Attributes:
        name: name of the Lease.
        namespace: namespace of the Lease.
        identity: identity of the candidate, different for every process.
        duration: seconds after which followers take over a Lease that is not renewed.
        deadline: seconds after which a leader that cannot renew stops.
        period: seconds between two renewals. A follower checks twice per period.
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
    """A candidate in a leader election."""

    def __init__(self, leases: Leases, election: Election, leading: Callable[[bool], None]) -> None:
        """`leading` is called with True when leadership starts, and with False when it ends."""
        self._leases = leases
        self._election = election
        self._leading = leading
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._held_until = 0.0

    def holds(self) -> bool:
        """Return whether no other process can hold the Lease yet."""
        return asyncio.get_running_loop().time() < self._held_until

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, run `lead()` while holding it, and cancel it if the Lease is lost.

        Returns when `lead()` has ended or the Lease is lost, and raises what `lead()` raised. The caller then ends the
        process, so that the next one starts without stale state.
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
        logged = ""
        while True:
            started = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(self._call_limit()):
                    if await self._try():
                        return started
            except (KubeError, TimeoutError) as error:
                message = str(error) or "no answer in time"
                if message != logged:
                    log.warning("the Lease %s could not be read or taken: %s", self._election.name, message)
                    logged = message
            await asyncio.sleep(self._pause() / 2)

    async def _hold(self, work: "asyncio.Future[None]", renewed: float) -> None:
        """Renew until the work ends, another process holds the Lease, or renewals have failed for too long."""
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
                        log.error("another operator holds the Lease: stopping")
                        return
                renewed = started
                self._held_until = renewed + self._election.duration
            except (KubeError, TimeoutError) as error:
                log.warning("the Lease could not be renewed: %s", error or "no answer in time")
        log.error("the Lease could not be renewed for %.0f s: stopping", deadline)

    async def _try(self) -> bool:
        """Acquire or renew the Lease with one compare-and-swap. Return whether it is held."""
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
        """Release the Lease if it is still held. If the request fails, the Lease expires."""
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
            # Another candidate was faster, or this one: the HTTP client repeats a request whose answer was lost.
            lease = await self._leases.get(LEASES, self._election.namespace, self._election.name)
            return bool(lease.get("spec", {}).get("holderIdentity") == self._election.identity)
        return True

    def _call_limit(self) -> float:
        return min(self._election.period * 2, self._election.deadline / 2)

    def _pause(self) -> float:
        return self._election.period * random.uniform(0.8, 1.2)  # noqa: S311 - keeps candidates apart


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

"""Leader election: never two leaders, and no longer gap than the Lease allows. Time is simulated."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from tunemill_operator.kube.client import Resource
from tunemill_operator.kube.errors import ConflictError, ExistsError, NotFoundError, UnavailableError
from tunemill_operator.runtime.elector import Election, Elector

Json = dict[str, Any]
Jump = Callable[..., Any]


class Store:
    """One Lease, as the API server stores it."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.history: list[str] = []


class Client:
    """The three requests on the Lease; a test decides their outcome."""

    def __init__(self, store: Store, seconds: float = 0.001) -> None:
        self.store = store
        self.seconds = seconds
        self.broken = False
        self.hangs = False
        self.repeats = False
        """Whether every write arrives twice, because the connection broke before the first answer."""

    async def _answer(self) -> None:
        await asyncio.sleep(10_000 if self.hangs else self.seconds)
        if self.broken:
            raise UnavailableError("connection refused")

    async def get(self, resource: Resource, namespace: str, name: str) -> Json:
        """Return the Lease."""
        await self._answer()
        if self.store.lease is None:
            raise NotFoundError("no such Lease", 404)
        return deepcopy(self.store.lease)

    async def create(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Create the Lease."""
        await self._answer()
        if self.store.lease is not None:
            raise ExistsError("there is one", 409)
        return self._keep(body, 1)

    async def replace(self, resource: Resource, namespace: str, body: Json) -> Json:
        """Replace the Lease, if it has not changed."""
        await self._answer()
        assert self.store.lease is not None
        if self.repeats:
            self._keep(body, int(self.store.lease["metadata"]["resourceVersion"]) + 1)
        version = self.store.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ConflictError("changed", 409)
        return self._keep(body, int(version) + 1)

    def _keep(self, body: Json, version: int) -> Json:
        self.store.lease = deepcopy(body)
        self.store.lease["metadata"]["resourceVersion"] = str(version)
        self.store.history.append(body["spec"]["holderIdentity"])
        return deepcopy(self.store.lease)


class Candidate:
    """A process that competes for leadership, and the times at which it led."""

    def __init__(self, store: Store, name: str, seconds: float = 0.001) -> None:
        self.name = name
        self.client = Client(store, seconds)
        self.since: float | None = None
        self.until: float | None = None
        self.elector = Elector(self.client, Election("lease", "default", name), self._leading)
        self.task = asyncio.ensure_future(self.elector.run(self._lead))

    @property
    def leads(self) -> bool:
        """Whether it leads now."""
        return self.since is not None and self.until is None

    async def _lead(self) -> None:
        await asyncio.sleep(1_000_000)

    def _leading(self, leads: bool) -> None:
        now = asyncio.get_running_loop().time()
        if leads:
            self.since, self.until = now, None
        else:
            self.until = now

    async def stop(self) -> None:
        """Stop the process cleanly."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def test_the_first_candidate_leads_and_the_second_waits(jump: Jump) -> None:
    """For as long as the first one renews the Lease."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        second = Candidate(store, "b")
        await asyncio.sleep(3600)
        assert first.leads
        assert second.since is None
        assert set(store.history) == {"a"}
        await asyncio.gather(first.stop(), second.stop())

    jump(story())


def test_a_clean_stop_hands_over_within_seconds(jump: Jump) -> None:
    """The Lease is released, not left to expire."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        second = Candidate(store, "b")
        await asyncio.sleep(10)
        await first.stop()
        await asyncio.sleep(3)
        assert second.leads
        assert first.until is not None
        assert second.since is not None
        assert first.until < second.since
        await second.stop()

    jump(story())


@pytest.mark.parametrize("how", ["broken", "hangs"])
def test_a_disconnected_leader_stops_before_another_starts(jump: Jump, how: str) -> None:
    """Whether its requests fail or hang: it stops after 10 s, the other starts after 15 s."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        second = Candidate(store, "b")
        await asyncio.sleep(60)
        cut = asyncio.get_running_loop().time()
        setattr(first.client, how, True)
        await asyncio.sleep(60)
        assert not first.leads
        assert second.leads
        assert first.until is not None
        assert second.since is not None
        assert first.until - cut <= 11
        assert second.since - first.until >= 2
        assert second.since - cut <= 22
        await second.stop()

    jump(story())


def test_slow_renewals_cause_no_overlap_of_leaders(jump: Jump) -> None:
    """The deadline counts from the start of the last renewal, not from the response."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a", seconds=1.9)
        await asyncio.sleep(10)
        second = Candidate(store, "b")
        await asyncio.sleep(60)
        first.client.hangs = True
        await asyncio.sleep(60)
        assert first.until is not None
        assert second.since is not None
        assert second.since - first.until >= 2
        await second.stop()

    jump(story())


def test_a_frozen_leader_stops_when_it_wakes_up(jump: Jump) -> None:
    """Another candidate has taken the Lease meanwhile."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        assert store.lease is not None
        store.lease["spec"]["holderIdentity"] = "b"
        store.lease["metadata"]["resourceVersion"] = "99"
        await asyncio.sleep(5)
        assert not first.leads
        assert first.task.done()
        assert store.lease["spec"]["holderIdentity"] == "b"

    jump(story())


def test_a_leader_without_its_lease_must_not_write(jump: Jump) -> None:
    """Neither when another holds it, nor when another may hold it after a pause of the process."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        assert first.elector.holds()
        first.client.hangs = True
        await asyncio.sleep(9)
        assert first.elector.holds()
        await asyncio.sleep(7)
        assert not first.elector.holds()
        second = Candidate(store, "b")
        await asyncio.sleep(30)
        assert second.elector.holds()
        assert store.lease is not None
        store.lease["spec"]["holderIdentity"] = "c"
        store.lease["metadata"]["resourceVersion"] = "999"
        await asyncio.sleep(3)
        assert not second.elector.holds()

    jump(story())


def test_a_duplicated_renewal_is_not_another_leader(jump: Jump) -> None:
    """HTTP clients resend requests; the conflict that follows is with the own write."""

    async def story() -> None:
        store = Store()
        first = Candidate(store, "a")
        await asyncio.sleep(1)
        first.client.repeats = True
        await asyncio.sleep(60)
        assert first.leads
        assert first.elector.holds()
        await first.stop()

    jump(story())


def test_of_two_simultaneous_candidates_one_wins(jump: Jump) -> None:
    """The write is a compare-and-swap."""

    async def story() -> None:
        store = Store()
        candidates = [Candidate(store, name) for name in "abcdef"]
        await asyncio.sleep(30)
        assert sum(candidate.leads for candidate in candidates) == 1
        await asyncio.gather(*(candidate.stop() for candidate in candidates))

    jump(story())


def test_an_error_of_the_leader_releases_the_lease(jump: Jump) -> None:
    """The error is raised to the caller."""

    async def story() -> None:
        store = Store()

        async def lead() -> None:
            await asyncio.sleep(5)
            raise ValueError("the watch is dead")

        elector = Elector(Client(store), Election("lease", "default", "a"), lambda _: None)
        with pytest.raises(ValueError, match="the watch is dead"):
            await elector.run(lead)
        assert store.lease is not None
        assert store.lease["spec"]["holderIdentity"] == ""

    jump(story())


def test_settings_that_allow_two_leaders_are_rejected() -> None:
    """The renew deadline must be shorter than the lease duration."""
    with pytest.raises(ValueError, match="duration > deadline > period"):
        Election("lease", "default", "a", duration=10, deadline=10)

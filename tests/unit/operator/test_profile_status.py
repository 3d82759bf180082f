"""The status of FineTuneProfiles: written once for each spec, and only after a change."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from property.builders import a_finetune_body
from tunemill_operator.engine.profiles import Profile, profile_of
from tunemill_operator.kube.errors import ConflictError, KubeError
from tunemill_operator.runtime.cache import Cache
from tunemill_operator.runtime.profile_status import ProfileStatuses, status_of

Json = dict[str, Any]
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
INVALID: Json = {"defaults": {"compute": {"gpus": "many"}}}


def a_body(spec: Json, generation: int = 1, version: int = 10, status: Json | None = None) -> Json:
    """Return a FineTuneProfile as the API server stores it."""
    known = a_finetune_body()["metadata"]
    metadata = {name: known[name] for name in ("uid", "creationTimestamp")}
    metadata |= {"name": "gold", "generation": generation, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": spec, "status": status or {}}


class Client:
    """An API server that stores one profile and counts the writes of its status."""

    def __init__(self, body: Json) -> None:
        self.body = body
        self.writes: list[Json] = []
        self.error: KubeError | None = None

    async def request(self, method: str, path: str, query: Json, body: Json, content_type: str) -> Json:
        """Store a status; an apply must have the current version."""
        assert (method, content_type) == ("PATCH", "application/apply-patch+yaml")
        assert path == "/apis/tunemill.dev/v1alpha1/finetuneprofiles/gold/status"
        assert body["metadata"]["resourceVersion"] == self.body["metadata"]["resourceVersion"]
        if self.error:
            raise self.error
        self.writes.append(body["status"])
        version = str(int(self.body["metadata"]["resourceVersion"]) + 1)
        self.body = {**self.body, "metadata": {**self.body["metadata"], "resourceVersion": version}}
        self.body["status"] = body["status"]
        return self.body


def statuses_of(client: Client, cache: Cache) -> ProfileStatuses:
    """Return the status writer of a cache that has the client's profile."""
    cache.profiles.put(client.body)
    return ProfileStatuses(client, cache.profiles, lambda: NOW)  # type: ignore[arg-type]


def profile(spec: Json, **parts: Any) -> Profile:
    """Return the view of a profile."""
    return profile_of(a_body(spec, **parts))


@pytest.mark.parametrize(
    ("spec", "status", "reason", "words"),
    [
        ({}, "True", "Valid", "The profile is valid."),
        (INVALID, "False", "Invalid", "spec.defaults.compute.gpus: "),
        ({"limits": {"maxGpus": "x"}}, "False", "Invalid", "spec.limits.maxGpus: "),
    ],
)
def test_a_profile_has_a_condition_with_its_validity(spec: Json, status: str, reason: str, words: str) -> None:
    """With the invalid field, and not only in the objects that use the profile."""
    found = status_of(profile(spec, generation=7), NOW)
    (ready,) = found.conditions
    assert (found.observed_generation, ready.observed_generation) == (7, 7)
    assert (ready.type, ready.status, ready.reason) == ("Ready", status, reason)
    assert ready.message.startswith(words)


def test_the_transition_time_changes_only_with_the_status() -> None:
    """A new message keeps it."""
    first = status_of(profile(INVALID), NOW)
    written = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    later = NOW + timedelta(hours=1)
    again = status_of(profile({"limits": {"maxGpus": "x"}}, generation=2, status=written), later)
    assert again.conditions[0].last_transition_time == NOW
    corrected = status_of(profile({}, generation=2, status=written), later)
    assert corrected.conditions[0].last_transition_time == later


async def test_a_status_is_written_once_for_each_generation() -> None:
    """The watch event of the operator's own write causes no other write."""
    client, cache = Client(a_body(INVALID)), Cache()
    statuses = statuses_of(client, cache)
    for _ in range(3):
        await statuses.write_changed()
    assert [write["conditions"][0]["status"] for write in client.writes] == ["False"]
    client.body = a_body({}, generation=2, version=20, status=client.body["status"])
    cache.profiles.put(client.body)
    for _ in range(3):
        await statuses.write_changed()
    assert [write["conditions"][0]["status"] for write in client.writes] == ["False", "True"]


async def test_an_existing_status_is_not_rewritten_after_a_restart() -> None:
    """A restart writes nothing."""
    client = Client(a_body({}))
    await statuses_of(client, Cache()).write_changed()
    await statuses_of(client, Cache()).write_changed()
    assert len(client.writes) == 1


async def test_the_operators_own_write_does_not_requeue_objects() -> None:
    """The cache has the new version before the watch event arrives."""
    client, cache = Client(a_body({})), Cache()
    await statuses_of(client, cache).write_changed()
    assert cache.profiles.put(client.body) is None


async def test_a_failed_write_is_retried() -> None:
    """If the profile has changed meanwhile, with its new version."""
    client, cache = Client(a_body({})), Cache()
    statuses = statuses_of(client, cache)
    client.error = ConflictError("the object has been modified", 409)
    with pytest.raises(ConflictError):
        await statuses.write_changed()
    client.error = None
    await statuses.write_changed()
    assert len(client.writes) == 1

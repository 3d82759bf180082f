"""Cache of the latest known version of all objects."""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from tunemill_operator.engine.objects import (
    FineTune,
    Job,
    Meta,
    Pod,
    StoredFineTune,
    job_of,
    mapping,
    pod_of,
    stored_finetune_of,
)
from tunemill_operator.engine.profiles import Profile, profile_of

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a FunctionCallFineTune."""

REMEMBERED = 10_000
"""Number of remembered uids: of deleted objects, so that a late answer of the API server does not add one again, and of
unreadable objects, so that each version is logged once."""


def uid_of(body: Any) -> str:  # noqa: ANN401 - what stands in a list may be anything
    """Return the uid of an object. Empty if it has none."""
    uid = mapping(mapping(body).get("metadata")).get("uid")
    return uid if isinstance(uid, str) else ""


def _remember(known: dict[str, Any], key: str, value: Any) -> None:  # noqa: ANN401 - kept as it is
    """Store a value, and remove the oldest ones above REMEMBERED."""
    known[key] = value
    while len(known) > REMEMBERED:
        del known[next(iter(known))]


class _Viewed(Protocol):
    @property
    def meta(self) -> Meta:
        """What every object has."""


View = TypeVar("View", bound=_Viewed)


class Store(Generic[View]):
    """The objects of one kind. Versions that are older than the stored one are ignored.

    Watch events and the answers to the operator's own writes arrive in any order, so resource versions are compared. A
    version that cannot be read is ignored: users write most fields of an object, and an invalid one must not affect
    others.
    """

    def __init__(
        self,
        kind: str,
        view: Callable[[Mapping[str, Any]], View],
        key: Callable[[View], Key],
        unreadable: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Create an empty store.

        Args:
            kind: the plural of the kind.
            view: returns the stored form of an object.
            key: returns the key of the FunctionCallFineTune that an object belongs to.
            unreadable: called with the kind for each version of an object that cannot be read.
        """
        self._kind = kind
        self._view = view
        self._key = key
        self._unreadable = unreadable
        self._ignored: dict[str, str] = {}
        self._objects: dict[str, View] = {}
        self._by_key: dict[Key, set[str]] = defaultdict(set)
        self._deleted: dict[str, None] = {}

    def put(self, body: Mapping[str, Any]) -> Key | None:
        """Store an object. Return its key, or None if the version is not newer or cannot be read."""
        try:
            return self._put(body)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this object alone
            self._ignore(body, error)
            return None

    def _put(self, body: Mapping[str, Any]) -> Key | None:
        uid, version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        known = self._objects.get(uid)
        if uid in self._deleted or (known and known.meta.resource_version >= version):
            return None
        view = self._view(body)
        key = self._key(view)
        if known and self._key(known) != key:  # the label was changed
            self._forget(uid)
        self._objects[uid] = view
        self._by_key[key].add(uid)
        self._ignored.pop(uid, None)
        return key

    def _ignore(self, body: Mapping[str, Any], error: Exception) -> None:
        """Log once that this version of an object cannot be read."""
        metadata = mapping(mapping(body).get("metadata"))
        uid, version = str(metadata.get("uid", "")), str(metadata.get("resourceVersion", ""))
        where = f"{metadata.get('namespace', '')}/{metadata.get('name', '')}" if metadata else "without metadata"
        if self._ignored.get(uid) == version:
            return
        _remember(self._ignored, uid, version)
        self._unreadable(self._kind)
        problem = f"{type(error).__name__}: {error}"[:200]
        log.warning("%s: an object cannot be read and is ignored: %.400s: %s", self._kind, where, problem)

    def remove(self, uid: str) -> Key | None:
        """Remove a deleted object. Return its key, or None if it was not stored."""
        _remember(self._deleted, uid, None)
        return self._forget(uid)

    def _forget(self, uid: str) -> Key | None:
        view = self._objects.pop(uid, None)
        if view is None:
            return None
        key = self._key(view)
        self._by_key[key].discard(uid)
        if not self._by_key[key]:
            del self._by_key[key]
        return key

    def of(self, key: Key) -> tuple[View, ...]:
        """Return the objects of the FunctionCallFineTune with this key."""
        return tuple(self._objects[uid] for uid in self._by_key.get(key, ()))

    def complete(self, key: Key, bodies: Iterable[Mapping[str, Any]], version: int) -> None:
        """Store all objects with this key from a list at `version`, and remove those that it does not contain."""
        listed = set()
        for body in bodies:
            self.put(body)
            listed.add(uid_of(body))
        self._drop(self.of(key), listed, version)

    def get(self, uid: str) -> View | None:
        """Return the object with this uid."""
        return self._objects.get(uid)

    def keys(self) -> tuple[Key, ...]:
        """Return all keys."""
        return tuple(self._by_key)

    def prune(self, listed: Iterable[str], version: int, namespace: str | None = None) -> list[Key]:
        """Remove objects that a complete list (of a namespace) at `version` does not contain. Return their keys."""
        return self._drop((view for view in self if namespace in (None, view.meta.namespace)), set(listed), version)

    def _drop(self, views: Iterable[View], listed: Collection[str], version: int) -> list[Key]:
        """Remove objects that are not listed and not newer than `version`. Return their keys."""
        ghosts = [view.meta for view in views if view.meta.uid not in listed and view.meta.resource_version <= version]
        return [key for meta in ghosts if (key := self.remove(meta.uid))]

    def __iter__(self) -> Iterator[View]:
        return iter(tuple(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)


class Cache:
    """All cached objects."""

    def __init__(self, unreadable: Callable[[str], None] = lambda _: None) -> None:
        """`unreadable` is called with the kind of each object that cannot be read."""
        self.finetunes: Store[StoredFineTune] = Store(
            "functioncallfinetunes",
            stored_finetune_of,
            lambda stored: (stored.meta.namespace, stored.meta.name),
            unreadable,
        )
        self.jobs: Store[Job] = Store(
            "jobs", job_of, lambda view: (view.meta.namespace, view.meta.finetune), unreadable
        )
        self.profiles: Store[Profile] = Store(
            "finetuneprofiles", profile_of, lambda view: ("", view.meta.name), unreadable
        )
        self.pods: Store[Pod] = Store(
            "pods", pod_of, lambda view: (view.meta.namespace, view.meta.finetune), unreadable
        )

    def finetune(self, key: Key) -> FineTune | None:
        """Return the FunctionCallFineTune with this key: the latest one, if it was deleted and created again."""
        stored = self._stored(key)
        return stored.view() if stored else None

    def unserved(self, key: Key) -> bool:
        """Return whether this FunctionCallFineTune is new: it has neither a status nor a Job."""
        stored = self._stored(key)
        return stored is not None and not stored.phase and not self.jobs.of(key)

    def _stored(self, key: Key) -> StoredFineTune | None:
        return max(self.finetunes.of(key), key=lambda stored: stored.meta.resource_version, default=None)

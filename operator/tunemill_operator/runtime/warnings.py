"""The Warning events of namespaces: asked for once for all objects that wait, not once for each.

The API server finds the events about one object by reading all of a namespace. When a quota is full, a thousand Jobs
wait there, and each of them would have it read everything again and again; and of the thousand, those of which nothing
new was said need not be looked at.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from tunemill_operator.engine.observe import SILENT_AFTER, Complaint, patience
from tunemill_operator.kube.errors import KubeError
from tunemill_operator.runtime.cache import Key

TICK_SECONDS = 1.0
"""How often it is asked whose turn it is."""

Json = dict[str, Any]
log = logging.getLogger(__name__)


class Events(Protocol):
    """The request that is made."""

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return the Warning events of a namespace."""


@dataclass
class _Waiting:
    """The Jobs and pods of one object that do not start."""

    since: Mapping[str, datetime]
    """When each was created, by its uid."""
    due: datetime
    """When to ask about them."""
    complaints: Sequence[Complaint] = ()
    """What was said about them."""
    answered: bool = False
    """Whether this process has asked about them."""
    awaited: bool = False
    """Whether the first answer is news, whatever it says."""


class Warnings:
    """What the cluster complains about, while it does."""

    def __init__(self, events: Events, news: Callable[[Key], None]) -> None:
        """`news` is called with the key of an object about which something else is said than before."""
        self._events = events
        self._news = news
        self._waiting: dict[Key, _Waiting] = {}
        self._somebody_waits = asyncio.Event()

    def expect(self, key: Key, since: Mapping[str, datetime]) -> None:
        """Listen to what is said about these Jobs and pods of an object, instead of others; nothing ends it.

        Args:
            key: the object's.
            since: when each was created, by its uid.
        """
        known = self._waiting.get(key)
        if not since:
            self._waiting.pop(key, None)
        elif known is None or known.since != since:
            kept = [each for each in known.complaints if each.about in since] if known else []
            answered = known is not None and known.answered and since.keys() <= known.since.keys()
            self._waiting[key] = _Waiting(since, max(since.values()) + SILENT_AFTER, kept, answered)
            self._somebody_waits.set()

    def about(self, key: Key) -> tuple[Complaint, ...]:
        """Return what was said about the Jobs and pods of an object."""
        known = self._waiting.get(key)
        return tuple(known.complaints) if known else ()

    def awaits_first_answer(self, key: Key) -> bool:
        """Tell whether it is not known yet what is said about the object, as after a start; the answer is then news."""
        known = self._waiting.get(key)
        if known is None or known.answered:
            return False
        known.awaited = True
        return True

    async def run(self) -> None:
        """Ask until cancelled: about what is young soon and often, about what has waited for long ever more seldom."""
        while True:
            if not self._waiting:
                self._somebody_waits.clear()
                await self._somebody_waits.wait()
            await asyncio.sleep(TICK_SECONDS)
            now = datetime.now(UTC)
            for namespace in {key[0] for key, each in self._waiting.items() if each.due <= now}:
                await self._ask(namespace, now)

    async def _ask(self, namespace: str, now: datetime) -> None:
        """Ask about all that wait in a namespace; where there is no answer, ask again when they are due again."""
        try:
            said = _by_object(await self._events.warnings_in(namespace))
        except KubeError as error:
            log.warning("what keeps Jobs and pods of %s from starting cannot be asked: %s", namespace, error)
            said = None
        for key, each in self._waiting.items():
            if key[0] != namespace:
                continue
            each.due = now + patience(now - max(each.since.values()))
            if said is None:
                continue
            before, each.complaints = each.complaints, [one for uid in each.since for one in said.get(uid, ())]
            awaited, each.answered, each.awaited = each.awaited, True, False
            # Of thousands that wait, nothing is said about most.
            if awaited or ((before or each.complaints) and _words(before) != _words(each.complaints)):
                self._news(key)


def _by_object(events: Iterable[Json]) -> Mapping[str, Sequence[Complaint]]:
    said: dict[str, list[Complaint]] = defaultdict(list)
    for event in events:
        try:
            complaint = _complaint(event)
        except (KeyError, TypeError, ValueError, AttributeError):  # users write events, too
            continue
        said[complaint.about].append(complaint)
    return said


def _words(complaints: Sequence[Complaint]) -> list[tuple[str, str, str]]:
    """Return what was said, in its order: that it was said once more is no news."""
    return [(each.about, each.reason, each.message) for each in sorted(complaints, key=lambda each: each.last_seen)]


def _complaint(event: Json) -> Complaint:
    seen = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    time = datetime.fromisoformat(seen)
    return Complaint(
        about=event["involvedObject"].get("uid", ""),
        reason=event.get("reason", ""),
        message=event.get("message", ""),
        last_seen=time if time.tzinfo else time.replace(tzinfo=UTC),
    )

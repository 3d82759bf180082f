"""Warning events about Jobs and pods that do not start, listed once per namespace and not once per object.

The API server finds the events about one object by reading all events of its namespace. If a thousand Jobs wait for a
quota, a request per Job would be expensive. Objects without a new event are not reconciled.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from tunemill_operator.engine.observe import FIRST_CHECK_AFTER, WarningEvent, recheck_interval
from tunemill_operator.kube.errors import KubeError
from tunemill_operator.runtime.cache import Key

TICK_SECONDS = 1.0
"""Interval in seconds between checks for namespaces whose events are due."""

Json = dict[str, Any]
log = logging.getLogger(__name__)


class Events(Protocol):
    """Lists events."""

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return the Warning events in a namespace."""


@dataclass
class _Waiting:
    """The Jobs and pods of one object that have not started."""

    since: Mapping[str, datetime]
    """Creation time by uid."""
    due: datetime
    """When to list the events next."""
    warning_events: Sequence[WarningEvent] = ()
    """Events about these Jobs and pods."""
    answered: bool = False
    """Whether this process has listed the events."""
    awaited: bool = False
    """Whether the first list triggers a reconcile even without events."""


class Warnings:
    """The Warning events about Jobs and pods that have not started."""

    def __init__(self, events: Events, changed: Callable[[Key], None]) -> None:
        """`changed` is called with the key of an object whose Warning events have changed."""
        self._events = events
        self._changed = changed
        self._waiting: dict[Key, _Waiting] = {}
        self._has_waiting = asyncio.Event()

    def expect(self, key: Key, since: Mapping[str, datetime]) -> None:
        """Watch for events about these Jobs and pods of an object instead of earlier ones.

        Args:
            key: key of the object.
            since: creation time by uid. An empty mapping stops the watch.
        """
        known = self._waiting.get(key)
        if not since:
            self._waiting.pop(key, None)
        elif known is None or known.since != since:
            kept = [each for each in known.warning_events if each.about in since] if known else []
            answered = known is not None and known.answered and since.keys() <= known.since.keys()
            self._waiting[key] = _Waiting(since, max(since.values()) + FIRST_CHECK_AFTER, kept, answered)
            self._has_waiting.set()

    def about(self, key: Key) -> tuple[WarningEvent, ...]:
        """Return the events about the Jobs and pods of an object."""
        known = self._waiting.get(key)
        return tuple(known.warning_events) if known else ()

    def awaits_first_answer(self, key: Key) -> bool:
        """Return whether the object's events have not been listed yet. If so, the first list triggers a reconcile."""
        known = self._waiting.get(key)
        if known is None or known.answered:
            return False
        known.awaited = True
        return True

    async def run(self) -> None:
        """List events until cancelled: soon for new Jobs and pods, less and less often for those that wait longer."""
        while True:
            if not self._waiting:
                self._has_waiting.clear()
                await self._has_waiting.wait()
            await asyncio.sleep(TICK_SECONDS)
            now = datetime.now(UTC)
            for namespace in {key[0] for key, each in self._waiting.items() if each.due <= now}:
                await self._ask(namespace, now)

    async def _ask(self, namespace: str, now: datetime) -> None:
        """List the events of a namespace. After an error, the next attempt is when they are due again."""
        try:
            found = _by_object(await self._events.warnings_in(namespace))
        except KubeError as error:
            log.warning("the Warning events in %s cannot be listed: %s", namespace, error)
            found = None
        for key, each in self._waiting.items():
            if key[0] != namespace:
                continue
            each.due = now + recheck_interval(now - max(each.since.values()))
            if found is None:
                continue
            before, each.warning_events = each.warning_events, [one for uid in each.since for one in found.get(uid, ())]
            awaited, each.answered, each.awaited = each.awaited, True, False
            # Most of thousands of waiting objects have no events.
            if awaited or ((before or each.warning_events) and _words(before) != _words(each.warning_events)):
                self._changed(key)


def _by_object(events: Iterable[Json]) -> Mapping[str, Sequence[WarningEvent]]:
    found: dict[str, list[WarningEvent]] = defaultdict(list)
    for event in events:
        try:
            warning = _warning_event(event)
        except (KeyError, TypeError, ValueError, AttributeError):  # users can create events
            continue
        found[warning.about].append(warning)
    return found


def _words(warning_events: Sequence[WarningEvent]) -> list[tuple[str, str, str]]:
    """Return the content of the events in order, without repetitions of the same event."""
    return [(each.about, each.reason, each.message) for each in sorted(warning_events, key=lambda each: each.last_seen)]


def _warning_event(event: Json) -> WarningEvent:
    seen = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    time = datetime.fromisoformat(seen)
    return WarningEvent(
        about=event["involvedObject"].get("uid", ""),
        reason=event.get("reason", ""),
        message=event.get("message", ""),
        last_seen=time if time.tzinfo else time.replace(tzinfo=UTC),
    )

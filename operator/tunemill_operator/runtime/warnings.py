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

from tunemill_operator.engine.observe import FIRST_CHECK_AFTER, WarningEvent, recheck_interval
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
    warning_events: Sequence[WarningEvent] = ()
    """What was said about them."""
    answered: bool = False
    """Whether this process has asked about them."""
    awaited: bool = False
    """Whether the first answer is news, whatever it says."""


class Warnings:
    """What the cluster complains about, while it does."""

    def __init__(self, events: Events, changed: Callable[[Key], None]) -> None:
        """`news` is called with the key of an object about which something else is said than before."""
        self._events = events
        self._changed = changed
        self._waiting: dict[Key, _Waiting] = {}
        self._has_waiting = asyncio.Event()

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
            kept = [each for each in known.warning_events if each.about in since] if known else []
            answered = known is not None and known.answered and since.keys() <= known.since.keys()
            self._waiting[key] = _Waiting(since, max(since.values()) + FIRST_CHECK_AFTER, kept, answered)
            self._has_waiting.set()

    def about(self, key: Key) -> tuple[WarningEvent, ...]:
        """Return what was said about the Jobs and pods of an object."""
        known = self._waiting.get(key)
        return tuple(known.warning_events) if known else ()

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
                self._has_waiting.clear()
                await self._has_waiting.wait()
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
            each.due = now + recheck_interval(now - max(each.since.values()))
            if said is None:
                continue
            before, each.warning_events = each.warning_events, [one for uid in each.since for one in said.get(uid, ())]
            awaited, each.answered, each.awaited = each.awaited, True, False
            # Of thousands that wait, nothing is said about most.
            if awaited or ((before or each.warning_events) and _words(before) != _words(each.warning_events)):
                self._changed(key)


def _by_object(events: Iterable[Json]) -> Mapping[str, Sequence[WarningEvent]]:
    said: dict[str, list[WarningEvent]] = defaultdict(list)
    for event in events:
        try:
            warning = _warning_event(event)
        except (KeyError, TypeError, ValueError, AttributeError):  # users write events, too
            continue
        said[warning.about].append(warning)
    return said


def _words(warning_events: Sequence[WarningEvent]) -> list[tuple[str, str, str]]:
    """Return what was said, in its order: that it was said once more is no news."""
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

"""The Warning events of namespaces: asked for once for all objects that wait, not once for each.

The API server finds the events about one object by reading all of a namespace. When a quota is full, a thousand Jobs
wait there, and each of them would have it read everything again and again.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from tunemill_operator.engine.observe import Complaint

FRESH_SECONDS = 2.0
"""How old an answer may be."""

Json = dict[str, Any]


class Events(Protocol):
    """The request that is made."""

    async def warnings_in(self, namespace: str) -> list[Json]:
        """Return the Warning events of a namespace."""


class Warnings:
    """What the cluster complains about, by the uid of the Job or pod."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._asked: dict[str, tuple[float, asyncio.Task[dict[str, list[Complaint]]]]] = {}

    async def about(self, namespace: str, uids: Iterable[str]) -> tuple[Complaint, ...]:
        """Return what was said about these objects until FRESH_SECONDS ago, or later.

        Raises:
            KubeError: when the API server does not say; it is asked again next time.
        """
        now = asyncio.get_running_loop().time()
        asked_at, answer = self._asked.get(namespace, (0.0, None))
        if answer is None or now - asked_at > FRESH_SECONDS or (answer.done() and answer.exception()):
            self._asked = {name: each for name, each in self._asked.items() if now - each[0] <= FRESH_SECONDS}
            answer = asyncio.create_task(self._ask(namespace))
            self._asked[namespace] = now, answer
        complaints = await asyncio.shield(answer)
        return tuple(complaint for uid in uids for complaint in complaints.get(uid, ()))

    async def _ask(self, namespace: str) -> dict[str, list[Complaint]]:
        found: dict[str, list[Complaint]] = defaultdict(list)
        for event in await self._events.warnings_in(namespace):
            complaint = _complaint(event)
            found[complaint.about].append(complaint)
        return found


def _complaint(event: Json) -> Complaint:
    seen = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return Complaint(
        about=event["involvedObject"].get("uid", ""),
        reason=event.get("reason", ""),
        message=event.get("message", ""),
        last_seen=datetime.fromisoformat(seen),
    )

"""Authenticates progress reports: a pod may report about its own object, with its ServiceAccount token."""

import asyncio
import hashlib
from collections import Counter, OrderedDict
from typing import Any, Protocol

from tunemill_api.constants import PROGRESS_AUDIENCE

from tunemill_operator.engine.objects import Pod
from tunemill_operator.runtime.cache import Key

REMEMBERED_SECONDS = 60.0
"""Seconds for which the review of a token is cached. A pod reports every few seconds."""
REMEMBERED_TOKENS = 4096
REVIEWS_AT_ONCE = 8
"""Maximum number of concurrent TokenReviews, to protect the API server from floods of unknown tokens."""
REVIEWS_PER_CLIENT = 4
"""Maximum number of pending TokenReviews of one address. A client that sends thousands of invalid tokens does not delay
others."""
POD_NAME = "authentication.kubernetes.io/pod-name"
POD_UID = "authentication.kubernetes.io/pod-uid"


class TokenReviewer(Protocol):
    """Reviews tokens."""

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        """Return the status of a TokenReview."""


class Pods(Protocol):
    """Looks up stage pods."""

    def get(self, uid: str) -> Pod | None:
        """Return the pod with this uid."""


class NotAuthenticatedError(Exception):
    """The token is missing or invalid."""


class NotAllowedError(Exception):
    """The pod of the token may not report about this object."""


class BusyError(Exception):
    """Too many tokens of this address are being reviewed. The client should retry."""


class ReportAuthenticator:
    """Authenticates and authorizes progress reports."""

    def __init__(self, reviewer: TokenReviewer, pods: Pods) -> None:
        self._reviewer = reviewer
        self._pods = pods
        self._reviewed: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._reviewing = asyncio.Semaphore(REVIEWS_AT_ONCE)
        self._pending_reviews: Counter[str] = Counter()

    async def pod_of(self, authorization: str, key: Key, client: str) -> str:
        """Return the uid of the pod that reports about the object with this key.

        Args:
            authorization: the Authorization header, `Bearer` and the token.
            key: namespace and name of the object.
            client: address of the client.

        Raises:
            BusyError: too many tokens of this address are being reviewed.
            NotAuthenticatedError: the token is missing, expired, for another audience, or not bound to a pod.
            NotAllowedError: the pod does not belong to the object, has ended, or is not the first of its group.
            KubeError: the API server could not review the token.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme != "Bearer" or not token:
            raise NotAuthenticatedError
        uid = await self._review(token, client)
        if not uid:
            raise NotAuthenticatedError
        pod = self._pods.get(uid)
        if pod is None or (pod.meta.namespace, pod.meta.finetune) != key:
            raise NotAllowedError
        if pod.terminal or pod.meta.deleting or pod.index:  # of pods that train together, only the first reports
            raise NotAllowedError
        return uid

    async def _review(self, token: str, client: str) -> str:
        """Return the uid of the pod to which the token is bound. Empty if the token is not valid."""
        digest, now = hashlib.sha256(token.encode()).hexdigest(), asyncio.get_running_loop().time()
        if (known := self._reviewed.get(digest)) and now - known[0] < REMEMBERED_SECONDS:
            return known[1]
        if self._pending_reviews[client] >= REVIEWS_PER_CLIENT:
            raise BusyError
        self._pending_reviews[client] += 1
        try:
            async with self._reviewing:
                status = await self._reviewer.review_token(token, PROGRESS_AUDIENCE)
        finally:
            self._pending_reviews[client] -= 1
            if not self._pending_reviews[client]:
                del self._pending_reviews[client]
        uid = _pod_uid(status)
        self._reviewed[digest] = (now, uid)
        self._reviewed.move_to_end(digest)
        while len(self._reviewed) > REMEMBERED_TOKENS:
            self._reviewed.popitem(last=False)
        return uid


def _pod_uid(status: dict[str, Any]) -> str:
    if not status.get("authenticated") or PROGRESS_AUDIENCE not in status.get("audiences", []):
        return ""
    uids: list[str] = status.get("user", {}).get("extra", {}).get(POD_UID, [])
    return uids[0] if len(uids) == 1 else ""

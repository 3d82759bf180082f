"""Helpers of all routes: the server's components, the caller of a request, and the repository in its path."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from aiohttp import web

from tunemill_dev.hub import access
from tunemill_dev.hub.accounts import Accounts, Caller
from tunemill_dev.hub.faults import Faults
from tunemill_dev.hub.store import Kind, Repository, Store


@dataclass(frozen=True)
class Hub:
    """The server's components."""

    store: Store
    accounts: Callable[[], Accounts]
    admin_token: str
    """The token for `/_local`. If it is empty, `/_local` is disabled."""
    multipart_bytes: int
    """Larger uploads are split into parts of this size."""
    faults: Faults = field(default_factory=Faults)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def sign(self, path: str) -> str:
        """The key that signs upload URLs, to which clients send no token."""
        return hmac.new(self.secret, path.encode(), hashlib.sha256).hexdigest()


HUB = web.AppKey("hub", Hub)
CALLER = web.RequestKey("caller", Caller)
DROP_AFTER = web.RequestKey("drop_after", int)
"""An injected fault closes the connection after this many bytes of a file."""


def caller(request: web.Request) -> Caller | None:
    """Return the caller of the request; None for an anonymous request."""
    return request.get(CALLER)


def author(request: web.Request) -> str:
    """Return the author of a change."""
    who = caller(request)
    return who.name if who else ""


def visible(request: web.Request) -> Repository:
    """Return the repository in the path if it is visible to the caller."""
    return access.require_visible(caller(request), named(request))


def readable(request: web.Request) -> Repository:
    """Return the repository in the path if the caller may read its files."""
    repository = visible(request)
    access.require_content(caller(request), repository)
    return repository


def writable(request: web.Request) -> Repository:
    """Return the repository in the path if the caller may write to it."""
    repository = visible(request)
    access.require_write(caller(request), repository)
    return repository


def named(request: web.Request) -> Repository | None:
    """Return the repository in the path, without a permission check."""
    part = request.match_info
    return request.app[HUB].store.find(cast("Kind", part.get("kind", "models")), f"{part['owner']}/{part['name']}")


def page(request: web.Request, repository: Repository) -> str:
    """Return the URL of the repository from the client's point of view: through a Service or a forwarded port."""
    prefix = "" if repository.kind == "models" else f"{repository.kind}/"
    return f"{request.scheme}://{request.host}/{prefix}{repository.id}"

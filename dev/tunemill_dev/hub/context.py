"""What every route needs: the server's parts, the caller behind a request, the repository that it names."""

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
    """The server's parts."""

    store: Store
    accounts: Callable[[], Accounts]
    admin_token: str
    """Opens `/_local`; nobody may use it where this is empty."""
    multipart_bytes: int
    """Uploads larger than this come in parts of this size."""
    faults: Faults = field(default_factory=Faults)
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def sign(self, path: str) -> str:
        """Upload addresses carry a signature in place of a token: clients send none to them."""
        return hmac.new(self.secret, path.encode(), hashlib.sha256).hexdigest()


HUB = web.AppKey("hub", Hub)
CALLER = web.RequestKey("caller", Caller)
DROP_AFTER = web.RequestKey("drop_after", int)
"""After so many bytes of a file the connection breaks, by a fault on demand."""


def caller(request: web.Request) -> Caller | None:
    """Who sent the request; None for nobody."""
    return request.get(CALLER)


def author(request: web.Request) -> str:
    """The name under which a change is recorded."""
    who = caller(request)
    return who.name if who else ""


def visible(request: web.Request) -> Repository:
    """The repository named in the path, for those who may know that it exists."""
    return access.require_visible(caller(request), named(request))


def readable(request: web.Request) -> Repository:
    """The repository named in the path, for those who may read its files."""
    repository = visible(request)
    access.require_content(caller(request), repository)
    return repository


def writable(request: web.Request) -> Repository:
    """The repository named in the path, for those who may change it."""
    repository = visible(request)
    access.require_write(caller(request), repository)
    return repository


def named(request: web.Request) -> Repository | None:
    """The repository named in the path, whoever asks."""
    part = request.match_info
    return request.app[HUB].store.find(cast("Kind", part.get("kind", "models")), f"{part['owner']}/{part['name']}")


def page(request: web.Request, repository: Repository) -> str:
    """The address of the repository as this client reaches it, be it through a Service or a forwarded port."""
    prefix = "" if repository.kind == "models" else f"{repository.kind}/"
    return f"{request.scheme}://{request.host}/{prefix}{repository.id}"

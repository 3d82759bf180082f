"""Users, their organizations and their tokens, from a JSON file that is created at run time.

    {"users": {"alice": {"acme": "write"}},
     "tokens": [{"value": "…", "user": "alice", "role": "write"},
                {"value": "…", "user": "alice", "role": "fineGrained", "read_gated_repos": true,
                 "scopes": [{"entity": "acme/support-tools", "permissions": ["repo.write"]}]}]}

Permissions are checked in `access`.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunemill_dev.hub.errors import HubError

Permission = Literal["repo.content.read", "repo.write"]
_EPOCH = "2026-01-01T00:00:00.000Z"
_log = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scope(_Frozen):
    """The permissions of a fine-grained token in a namespace (`acme`) or a repository (`acme/support-tools`)."""

    entity: str
    permissions: tuple[Permission, ...]


class Token(_Frozen):
    """An access token. `scopes` and `read_gated_repos` apply only to the role `fineGrained`, as on the real Hub."""

    value: str = Field(min_length=8, repr=False)
    user: str
    role: Literal["read", "write", "fineGrained"]
    name: str = "token"
    scopes: tuple[Scope, ...] = ()
    read_gated_repos: bool = False


class Accounts(_Frozen):
    """All accounts. `users` maps each user to their organizations, with the role in each."""

    users: dict[str, dict[str, Literal["admin", "write", "read"]]]
    tokens: tuple[Token, ...] = ()

    @model_validator(mode="after")
    def _tokens_belong_to_users(self) -> Self:
        for token in self.tokens:
            if token.user not in self.users:
                raise ValueError(f"token {token.name!r} names user {token.user!r}, who is not in users")
        return self

    @cached_property
    def _callers(self) -> dict[str, Caller]:
        return {token.value: Caller(token=token, organisations=self.users[token.user]) for token in self.tokens}

    def identify(self, authorization: str | None) -> Caller | None:
        """Return the caller of an Authorization header; None without one. HubError 401 for an unknown token."""
        if not authorization:
            return None
        caller = self._callers.get(authorization.removeprefix("Bearer "))
        if caller is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return caller


class Caller(_Frozen):
    """A user with the token of the request."""

    token: Token
    organisations: dict[str, Literal["admin", "write", "read"]]

    @property
    def name(self) -> str:
        """The user's name, which is also their namespace."""
        return self.token.user

    def whoami(self) -> dict[str, object]:
        """The response of `/api/whoami-v2`, in the real Hub's format for each token role."""
        access: dict[str, object] = {
            "displayName": self.token.name,
            "role": self.token.role,
            "createdAt": _EPOCH,
        }
        if self.token.role == "fineGrained":
            access["fineGrained"] = {
                "canReadGatedRepos": self.token.read_gated_repos,
                "global": [],
                "scoped": [
                    {"entity": self._entity(scope.entity), "permissions": list(scope.permissions)}
                    for scope in self.token.scopes
                ],
            }
        return _profile(self.name, "user") | {
            "emailVerified": True,
            "isPro": False,
            "orgs": [_profile(name, "org") | {"roleInOrg": role} for name, role in self.organisations.items()],
            "auth": {"type": "access_token", "accessToken": access},
        }

    def _entity(self, name: str) -> dict[str, str]:
        kind = "model" if "/" in name else "user" if name == self.name else "org"
        return {"_id": _identifier(name), "type": kind, "name": name}


class AccountsFile:
    """Accounts from a file, which is read again when it changes, because Kubernetes updates mounted Secrets."""

    def __init__(self, path: Path) -> None:
        """Read the file. ValidationError or OSError if it is invalid."""
        self._path = path
        self._seen = self._fingerprint()
        self._accounts = self._read()

    def __call__(self) -> Accounts:
        """The current accounts. An invalid change is logged, and the previous accounts stay valid."""
        try:
            if (seen := self._fingerprint()) != self._seen:
                self._seen = seen
                self._accounts = self._read()
                _log.info("accounts read again from %s", self._path)
        except (OSError, ValidationError) as error:
            reasons = error.errors(include_input=False) if isinstance(error, ValidationError) else error
            _log.error("invalid accounts in %s, previous accounts are kept: %s", self._path, reasons)
        return self._accounts

    def _read(self) -> Accounts:
        return Accounts.model_validate_json(self._path.read_bytes())

    def _fingerprint(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size


def _profile(name: str, kind: str) -> dict[str, object]:
    return {
        "type": kind,
        "id": _identifier(name),
        "name": name,
        "fullname": name,
        "email": f"{name}@example.com",
        "canPay": False,
        "periodEnd": None,
        "avatarUrl": f"/avatars/{name}.svg",
    }


def _identifier(name: str) -> str:
    """The Hub's identifiers are 24 hexadecimal digits."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]

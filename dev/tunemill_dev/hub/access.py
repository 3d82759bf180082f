"""Permissions of a caller for a repository: pure functions that return, or raise the Hub's error."""

from __future__ import annotations

from tunemill_dev.hub.accounts import Caller, Permission
from tunemill_dev.hub.errors import HubError, repository_not_found
from tunemill_dev.hub.store import Repository


def require_visible(caller: Caller | None, repository: Repository | None) -> Repository:
    """Return the repository if it exists and is visible to the caller."""
    if repository is None or (repository.settings.private and not _allows(caller, repository, "repo.content.read")):
        raise repository_not_found(signed_in=caller is not None)
    return repository


def require_content(caller: Caller | None, repository: Repository) -> None:
    """Check that the caller may read files: those of a gated repository need membership or an access grant."""
    settings = repository.settings
    if not settings.gated or _allows(caller, repository, "repo.content.read"):
        return
    message = f"Access to {repository.kind[:-1]} {repository.id} is restricted"
    if caller is None:
        raise HubError(401, f"{message}. You must have access to it and be authenticated.", "GatedRepo")
    if caller.name not in settings.granted:
        raise HubError(403, f"{message} and you are not in the authorized list.", "GatedRepo")
    if caller.token.role == "fineGrained" and not caller.token.read_gated_repos:
        raise HubError(403, f"{message}: enable access to public gated repositories in your token.", "GatedRepo")


def require_write(caller: Caller | None, repository: Repository) -> None:
    """Check write access to the repository, for commits, refs and settings."""
    _require(caller, repository.namespace, repository.id, f"write to {repository.id}")


def require_namespace(caller: Caller | None, namespace: str, action: str) -> None:
    """Check write access to the whole namespace, to create and delete repositories. `action` is used in the message."""
    _require(caller, namespace, namespace, f'{action} under the namespace "{namespace}"')


def _require(caller: Caller | None, namespace: str, entity: str, action: str) -> None:
    if caller is None:
        raise HubError(401, "Invalid username or password.")
    if caller.token.role == "read":
        raise HubError(403, f"Forbidden: you must use a write token to {action}")
    if _role(caller, namespace) not in {"admin", "write"} or not _covers(caller, namespace, entity, "repo.write"):
        raise HubError(403, f"Forbidden: you don't have the rights to {action}")


def _allows(caller: Caller | None, repository: Repository, permission: Permission) -> bool:
    namespace = repository.namespace
    return bool(caller and _role(caller, namespace) and _covers(caller, namespace, repository.id, permission))


def _role(caller: Caller, namespace: str) -> str | None:
    return "admin" if namespace == caller.name else caller.organisations.get(namespace)


def _covers(caller: Caller, namespace: str, entity: str, permission: Permission) -> bool:
    """Whether the scopes of the token allow it, independent of its user. Writing includes reading."""
    if caller.token.role != "fineGrained":
        return permission == "repo.content.read" or caller.token.role == "write"
    scopes = (scope for scope in caller.token.scopes if scope.entity in {namespace, entity})
    return any(permission in scope.permissions or "repo.write" in scope.permissions for scope in scopes)

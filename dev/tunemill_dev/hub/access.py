"""What a caller may do with a repository: pure decisions, each of which returns or raises the Hub's refusal."""

from __future__ import annotations

from tunemill_dev.hub.accounts import Caller, Permission
from tunemill_dev.hub.errors import HubError, repository_not_found
from tunemill_dev.hub.store import Repository


def require_visible(caller: Caller | None, repository: Repository | None) -> Repository:
    """The repository, if it exists and the caller may know that."""
    if repository is None or (repository.settings.private and not _allows(caller, repository, "repo.content.read")):
        raise repository_not_found(signed_in=caller is not None)
    return repository


def require_content(caller: Caller | None, repository: Repository) -> None:
    """Files of a gated repository are for its members and for users on its access list."""
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
    """Commits, refs and settings need write access to this repository."""
    _require(caller, repository.namespace, repository.id, f"write to {repository.id}")


def require_namespace(caller: Caller | None, namespace: str, wish: str) -> None:
    """Making and deleting a repository needs write access to the whole namespace; `wish` is for the message."""
    _require(caller, namespace, namespace, f'{wish} under the namespace "{namespace}"')


def _require(caller: Caller | None, namespace: str, entity: str, wish: str) -> None:
    if caller is None:
        raise HubError(401, "Invalid username or password.")
    if caller.token.role == "read":
        raise HubError(403, f"Forbidden: you must use a write token to {wish}")
    if _role(caller, namespace) not in {"admin", "write"} or not _covers(caller, namespace, entity, "repo.write"):
        raise HubError(403, f"Forbidden: you don't have the rights to {wish}")


def _allows(caller: Caller | None, repository: Repository, permission: Permission) -> bool:
    namespace = repository.namespace
    return bool(caller and _role(caller, namespace) and _covers(caller, namespace, repository.id, permission))


def _role(caller: Caller, namespace: str) -> str | None:
    return "admin" if namespace == caller.name else caller.organisations.get(namespace)


def _covers(caller: Caller, namespace: str, entity: str, permission: Permission) -> bool:
    """Whether the token, apart from its user, reaches so far. Writing includes reading."""
    if caller.token.role != "fineGrained":
        return permission == "repo.content.read" or caller.token.role == "write"
    scopes = (scope for scope in caller.token.scopes if scope.entity in {namespace, entity})
    return any(permission in scope.permissions or "repo.write" in scope.permissions for scope in scopes)

"""Routes that manage repositories: create, delete, settings, access, branches and tags."""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import BaseModel, StringConstraints

from tunemill_dev.hub import access
from tunemill_dev.hub.commits import FIRST_FILES
from tunemill_dev.hub.context import HUB, author, caller, page, readable, visible, writable
from tunemill_dev.hub.errors import HubError, revision_not_found
from tunemill_dev.hub.store import Gated, Kind, Repository

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")]
_RefName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w./-]{0,127}$")]


class _Id(BaseModel):
    name: Name
    organization: Name | None = None
    type: Literal["model", "dataset"] = "model"

    @property
    def kind(self) -> Kind:
        return "models" if self.type == "model" else "datasets"


class _New(_Id):
    visibility: Literal["public", "private"] | None = None
    private: bool = False


class _Change(BaseModel):
    visibility: Literal["public", "private"] | None = None
    private: bool | None = None
    gated: Gated | None = None


class _Branch(BaseModel):
    startingPoint: str = "main"  # noqa: N815 - the protocol's spelling


class _Tag(BaseModel):
    tag: _RefName


class _Grant(BaseModel):
    user: str


async def whoami(request: web.Request) -> web.Response:
    """GET /api/whoami-v2."""
    if (who := caller(request)) is None:
        raise HubError(401, "Invalid username or password.")
    return web.json_response(who.whoami())


async def create(request: web.Request) -> web.Response:
    """POST /api/repos/create; 409 with the URL if it already exists."""
    asked = _New.model_validate_json(await request.read())
    store, repo_id = request.app[HUB].store, _repo_id(request, asked, "create")
    if repository := store.find(asked.kind, repo_id):
        return web.json_response(
            {"error": f"You already created this {asked.type} repo", "url": page(request, repository)}, status=409
        )
    private = asked.visibility == "private" or asked.private
    repository = store.create(asked.kind, repo_id, private=private, author=author(request), files=FIRST_FILES)
    return web.json_response({"url": page(request, repository), "name": repo_id, "id": repo_id})


async def delete(request: web.Request) -> web.Response:
    """DELETE /api/repos/delete."""
    asked = _Id.model_validate_json(await request.read())
    store, repo_id = request.app[HUB].store, _repo_id(request, asked, "delete")
    store.delete(access.require_visible(caller(request), store.find(asked.kind, repo_id)))
    return web.json_response({})


async def settings(request: web.Request) -> web.Response:
    """PUT …/settings: visibility, and whether the repository is gated."""
    change = _Change.model_validate_json(await request.read())
    repository = writable(request)
    if change.visibility is not None or change.private is not None:
        repository.settings.private = change.visibility == "private" or bool(change.private)
    if change.gated is not None:
        repository.settings.gated = change.gated
    repository.save()
    return web.json_response({"private": repository.settings.private, "gated": repository.settings.gated})


async def grant(request: web.Request) -> web.Response:
    """POST …/user-access-request/grant: grant a user access to a gated repository."""
    user = _Grant.model_validate_json(await request.read()).user
    repository = writable(request)
    if user not in request.app[HUB].accounts().users:
        raise HubError(404, f"There is no user {user}")
    repository.settings.granted = sorted({*repository.settings.granted, user})
    repository.save()
    return web.json_response({})


async def auth_check(request: web.Request) -> web.Response:
    """GET …/auth-check and …/auth-check/write."""
    writable(request) if request.path.endswith("/write") else readable(request)
    return web.json_response({})


async def refs(request: web.Request) -> web.Response:
    """GET …/refs."""
    found = visible(request).settings
    kinds = {"branches": ("heads", found.branches), "tags": ("tags", found.tags)}
    answer = {
        kind: [{"name": name, "ref": f"refs/{part}/{name}", "targetCommit": commit} for name, commit in names.items()]
        for kind, (part, names) in kinds.items()
    }
    return web.json_response(answer | {"converts": [], "pullRequests": []})


async def create_branch(request: web.Request) -> web.Response:
    """POST …/branch/NAME."""
    asked = _Branch.model_validate_json(await request.read() or b"{}")
    name = _Tag(tag=request.match_info["revision"]).tag
    repository = writable(request)
    _must_be_new(repository.settings.branches, name, "branch")
    repository.settings.branches[name] = repository.resolve(asked.startingPoint).id
    repository.save()
    return web.json_response({})


async def delete_branch(request: web.Request) -> web.Response:
    """DELETE …/branch/NAME; `main` cannot be deleted."""
    repository = writable(request)
    if request.match_info["revision"] == "main":
        raise HubError(403, "The default branch cannot be deleted")
    return _forget(repository, repository.settings.branches, request.match_info["revision"])


async def create_tag(request: web.Request) -> web.Response:
    """POST …/tag/REVISION: tag the revision; the name of the tag is in the body."""
    name = _Tag.model_validate_json(await request.read()).tag
    repository = writable(request)
    _must_be_new(repository.settings.tags, name, "tag")
    repository.settings.tags[name] = repository.resolve(request.match_info["revision"]).id
    repository.save()
    return web.json_response({})


async def delete_tag(request: web.Request) -> web.Response:
    """DELETE …/tag/NAME."""
    repository = writable(request)
    return _forget(repository, repository.settings.tags, request.match_info["revision"])


def _repo_id(request: web.Request, asked: _Id, verb: str) -> str:
    """Return the full name if the caller may create and delete repositories in its namespace."""
    who = caller(request)
    namespace = asked.organization or (who.name if who else "")
    access.require_namespace(who, namespace, f"{verb} a {asked.type}")
    return f"{namespace}/{asked.name}"


def _must_be_new(names: dict[str, str], name: str, what: str) -> None:
    if name in names:
        raise HubError(409, f"{what.capitalize()} {name} exists already")


def _forget(repository: Repository, names: dict[str, str], name: str) -> web.Response:
    if names.pop(name, None) is None:
        raise revision_not_found(name)
    repository.save()
    return web.json_response({})

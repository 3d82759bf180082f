"""Routes of the LFS protocol: upload of large files, complete or in parts, before the commit that contains them."""

from __future__ import annotations

import asyncio
import hmac
from typing import Literal

from aiohttp import web
from pydantic import BaseModel, Field

from tunemill_dev.hub.context import HUB, named, page, visible, writable
from tunemill_dev.hub.errors import HubError, repository_not_found
from tunemill_dev.hub.store import Receiver, Repository


class _Object(BaseModel):
    oid: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class _Batch(BaseModel):
    operation: Literal["upload"]
    transfers: list[str] = ["basic"]
    objects: list[_Object]


class _Part(BaseModel):
    partNumber: int = Field(ge=1)  # noqa: N815 - the protocol's spelling
    etag: str


class _Parts(BaseModel):
    parts: list[_Part] = Field(min_length=1)


async def batch(request: web.Request) -> web.Response:
    """POST REPO.git/info/lfs/objects/batch: the upload URL of each object; no `actions` for existing objects."""
    asked = _Batch.model_validate_json(await request.read())
    repository = writable(request)
    answers: list[dict[str, object]] = []
    for item in asked.objects:
        answer: dict[str, object] = item.model_dump()
        if not repository.blob(item.oid).exists():
            in_parts = "multipart" in asked.transfers and item.size > request.app[HUB].multipart_bytes
            answer["actions"] = {
                "upload": _parts_action(request, repository, item)
                if in_parts
                else {"href": _href(request, repository, item)},
                "verify": {"href": _href(request, repository, item, "/verify")},
            }
        answers.append(answer)
    return web.json_response({"transfer": "basic", "objects": answers}, content_type="application/vnd.git-lfs+json")


async def put(request: web.Request) -> web.Response:
    """PUT of a complete object."""
    await _take(request, _signed(request).receive(request.match_info["oid"]))
    return web.Response()


async def put_part(request: web.Request) -> web.Response:
    """PUT of one part. The client sends the ETag back when it completes the upload."""
    repository = _signed(request)
    digest = await _take(request, repository.receive_part(request.match_info["oid"], int(request.match_info["part"])))
    return web.Response(headers={"ETag": f'"{digest}"'})


async def complete(request: web.Request) -> web.Response:
    """POST after the last part: join the parts, in a thread because gigabytes may be copied and hashed."""
    parts = _Parts.model_validate_json(await request.read()).parts
    if [part.partNumber for part in parts] != list(range(1, len(parts) + 1)):
        raise HubError(400, f"expected the parts 1 to {len(parts)} in order")
    digests = [part.etag.strip('"') for part in parts]
    await asyncio.to_thread(_signed(request).join_parts, request.match_info["oid"], digests)
    return web.json_response({})


async def verify(request: web.Request) -> web.Response:
    """POST after an upload: check that the object exists and has the announced size."""
    promised = _Object.model_validate_json(await request.read())
    blob = visible(request).blob(request.match_info["oid"])
    if not blob.exists() or blob.stat().st_size != promised.size:
        raise HubError(404, f"object {promised.oid} of {promised.size} bytes does not exist")
    return web.json_response({})


def _parts_action(request: web.Request, repository: Repository, item: _Object) -> dict[str, object]:
    size = request.app[HUB].multipart_bytes
    count = -(-item.size // size)
    parts = {str(n): _href(request, repository, item, f"/{n}") for n in range(1, count + 1)}
    return {"href": _href(request, repository, item, "/complete"), "header": {"chunk_size": str(size), **parts}}


def _href(request: web.Request, repository: Repository, item: _Object, rest: str = "") -> str:
    path = f"/_lfs/{repository.kind}/{repository.id}/{item.oid}"
    base = page(request, repository).removesuffix(f"/{repository.id}").removesuffix(f"/{repository.kind}")
    return f"{base}{path}{rest}?signature={request.app[HUB].sign(path)}"


def _signed(request: web.Request) -> Repository:
    """Return the repository of an upload URL that this server has signed."""
    path = "/_lfs/{kind}/{owner}/{name}/{oid}".format_map(request.match_info)
    if not hmac.compare_digest(request.query.get("signature", ""), request.app[HUB].sign(path)):
        raise HubError(403, "this upload URL was not signed by this Hub, or was signed before its restart")
    if (repository := named(request)) is None:
        raise repository_not_found(signed_in=False)
    return repository


async def _take(request: web.Request, receiver: Receiver) -> str:
    with receiver:
        async for chunk in request.content.iter_chunked(1 << 20):
            receiver.write(chunk)
    return receiver.digest

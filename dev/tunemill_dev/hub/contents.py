"""Routes for the contents of a repository: model info, trees, history and files."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from tunemill_dev.hub.cards import read_card
from tunemill_dev.hub.context import DROP_AFTER, readable, visible
from tunemill_dev.hub.errors import HubError, entry_not_found
from tunemill_dev.hub.store import Commit, File, Repository

_CHUNK = 256 << 10


class _Paths(BaseModel):
    paths: list[str]


async def info(request: web.Request) -> web.Response:
    """GET /api/models/ID[/revision/REVISION]."""
    repository = visible(request)
    commit = repository.resolve(request.match_info.get("revision", "main"))
    card = _card(repository, commit)
    library, pipeline, tags = card.get("library_name"), card.get("pipeline_tag"), card.get("tags")
    answer: dict[str, object] = {
        "id": repository.id,
        "author": repository.namespace,
        "sha": commit.id,
        "lastModified": _stamp(commit.date),
        "createdAt": _stamp(repository.settings.created),
        "private": repository.settings.private,
        "gated": repository.settings.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [tag for tag in [library, pipeline, *(tags or [])] if tag],
        "siblings": [_sibling(path, file, blobs="blobs" in request.query) for path, file in commit.files.items()],
        "usedStorage": sum({file.sha256: file.size for file in commit.files.values()}.values()),
    }
    optional = {
        "cardData": card,
        "library_name": library,
        "pipeline_tag": pipeline,
        "safetensors": _safetensors(repository, commit),
    }
    answer |= {key: value for key, value in optional.items() if value}
    if repository.kind == "models":
        answer["modelId"] = repository.id
    if wanted := {*request.query.getall("expand", []), *request.query.getall("expand[]", [])}:
        answer = {key: value for key, value in answer.items() if key in {"id", *wanted}}
    return web.json_response(answer)


async def tree(request: web.Request) -> web.Response:
    """GET …/tree/REVISION[/FOLDER][?recursive=true]: files and folders."""
    commit = visible(request).resolve(request.match_info["revision"])
    folder = request.match_info.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    below = [path for path in commit.files if path.startswith(prefix)]
    if folder and not below:
        raise entry_not_found(folder, commit.id)
    entries = {path: _entry(path, commit.files[path]) for path in below}
    for path in below:
        for parent in PurePosixPath(path).parents:
            if len(str(parent)) >= len(prefix) and str(parent) != ".":
                entries[str(parent)] = _folder(str(parent), commit)
    if request.query.get("recursive", "false").lower() != "true":
        entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(prefix)}
    return web.json_response([entries[path] for path in sorted(entries)])


async def paths_info(request: web.Request) -> web.Response:
    """POST …/paths-info/REVISION with a form or JSON: the listed files and folders that exist."""
    if request.content_type == "application/json":
        paths = _Paths.model_validate_json(await request.read()).paths
    else:
        paths = [str(path) for path in (await request.post()).getall("paths", [])]
    commit = visible(request).resolve(request.match_info["revision"])
    answers = []
    for path in paths:
        if path in commit.files:
            answers.append(_entry(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            answers.append(_folder(path, commit))
    return web.json_response(answers)


async def history(request: web.Request) -> web.Response:
    """GET …/commits/REVISION, newest first."""
    answers = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "date": _stamp(commit.date),
            "authors": [{"user": commit.author}],
        }
        for commit in visible(request).history(request.match_info["revision"])
    ]
    return web.json_response(answers)


async def resolve(request: web.Request) -> web.StreamResponse:
    """GET or HEAD REPO/resolve/REVISION/PATH, complete or a range."""
    repository = readable(request)
    commit = repository.resolve(request.match_info["revision"])
    path = request.match_info["path"]
    if (file := commit.files.get(path)) is None:
        raise entry_not_found(path, commit.id)
    start, stop = _span(request, file.size)
    response = web.StreamResponse(status=200 if "Range" not in request.headers else 206)
    response.headers.update({"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"})
    if file.pointer_size:
        response.headers.update({"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)})
    if response.status == 206:
        response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    response.content_length = stop - start
    await response.prepare(request)
    if request.method != "HEAD":
        await _send(request, response, repository, file, start, stop)
    return response


async def _send(
    request: web.Request, response: web.StreamResponse, repository: Repository, file: File, start: int, stop: int
) -> None:
    limit = request.get(DROP_AFTER)
    end = stop if limit is None else min(stop, start + limit)
    with repository.blob(file.sha256).open("rb") as blob:
        blob.seek(start)
        while start < end:
            chunk = blob.read(min(_CHUNK, end - start))
            await response.write(chunk)
            start += len(chunk)
    if limit is not None and request.transport:
        request.transport.close()


def _span(request: web.Request, size: int) -> tuple[int, int]:
    """Return the requested range of bytes, half-open."""
    try:
        start, stop, _ = request.http_range.indices(size)
    except ValueError as error:
        raise HubError(416, f"{error}: {request.headers['Range']}") from error
    if "Range" in request.headers and start >= stop:
        raise HubError(416, f"{request.headers['Range']} is outside of a file of {size} bytes")
    return start, stop


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    if readme is None:
        return {}
    card = read_card(repository.blob(readme.sha256).read_text(errors="replace"))
    # JSON has no dates; the Hub returns them as text.
    return json.loads(json.dumps(card.metadata, default=str))  # type: ignore[no-any-return]


def _safetensors(repository: Repository, commit: Commit) -> dict[str, object] | None:
    """Return the number of parameters by data type of all shards, from their headers.

    The header is JSON after its length in 8 bytes (https://github.com/huggingface/safetensors#format).
    """
    counts: Counter[str] = Counter()
    for path, file in commit.files.items():
        if not PurePosixPath(path).match("model*.safetensors") or "/" in path:
            continue
        with repository.blob(file.sha256).open("rb") as blob:
            length = int.from_bytes(blob.read(8), "little")
            if length > file.size:
                return None
            try:
                header = json.loads(blob.read(length))
            except ValueError:
                return None
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[tensor["dtype"]] += math.prod(tensor["shape"])
    return {"parameters": dict(counts), "total": counts.total()} if counts else None


def _sibling(path: str, file: File, *, blobs: bool) -> dict[str, object]:
    if not blobs:
        return {"rfilename": path}
    lfs = {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return {"rfilename": path, "size": file.size, "blobId": file.oid} | ({"lfs": lfs} if file.pointer_size else {})


def _entry(path: str, file: File) -> dict[str, object]:
    lfs = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    entry: dict[str, object] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    return entry | ({"lfs": lfs} if file.pointer_size else {})


def _folder(path: str, commit: Commit) -> dict[str, object]:
    """A folder. Its id depends on its contents, as in git."""
    below = "".join(f"{name} {file.oid}\n" for name, file in commit.files.items() if name.startswith(f"{path}/"))
    return {"type": "directory", "path": path, "size": 0, "oid": File.regular(below.encode()).oid}


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

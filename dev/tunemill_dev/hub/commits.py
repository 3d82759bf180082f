"""Routes that create commits: preupload, which selects the upload method of each file, and the commit itself."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import AfterValidator, BaseModel, Field

from tunemill_dev.hub.cards import read_card
from tunemill_dev.hub.context import author, page, writable
from tunemill_dev.hub.errors import HubError, entry_not_found
from tunemill_dev.hub.store import Commit, File, Repository

_LFS_NAMES = "bin ckpt gguf gz h5 model msgpack npy npz onnx parquet pickle pkl pt pth safetensors tar zip zst"
_LFS_SUFFIXES = frozenset(_LFS_NAMES.split())
_LFS_BYTES = 10 << 20
_GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(_LFS_SUFFIXES))
FIRST_FILES = {".gitattributes": _GIT_ATTRIBUTES.encode()}
"""The .gitattributes of a new repository, with the rules for LFS."""


def _inside(path: str) -> str:
    """Reject paths that git rejects, and paths that a client could write outside its download folder."""
    plain = PurePosixPath(path)
    if not plain.parts or plain.is_absolute() or {"..", ".git"} & set(plain.parts) or str(plain) != path:
        raise ValueError("must be a plain path inside the repository")
    return path


_Path = Annotated[str, AfterValidator(_inside)]


class _Candidate(BaseModel):
    path: _Path
    size: int = Field(ge=0)
    sample: str = ""
    """The first 512 bytes in base64."""

    def needs_lfs(self) -> bool:
        """Whether the file uses LFS: by name, by size, or because its content is binary."""
        by_name = PurePosixPath(self.path).suffix.removeprefix(".") in _LFS_SUFFIXES
        return by_name or self.size > _LFS_BYTES or b"\0" in base64.b64decode(self.sample)


class _Readme(BaseModel):
    content: str


class _Preupload(BaseModel):
    files: list[_Candidate]


@dataclass
class _Change:
    """The commit that is being built."""

    repository: Repository
    base: Commit
    files: dict[str, File]

    def remove(self, paths: list[str], asked: str) -> None:
        if not paths:
            raise entry_not_found(asked, self.base.id)
        for path in paths:
            del self.files[path]


class _Line(BaseModel):
    key: str
    value: dict[str, Any]


class _Header(BaseModel):
    summary: str = Field(min_length=1)
    description: str = ""
    parentCommit: str = ""  # noqa: N815 - the protocol's spelling


class _PutFile(BaseModel):
    path: _Path
    content: str
    encoding: Literal["base64", "utf-8"] = "utf-8"

    def apply(self, change: _Change) -> None:
        content = base64.b64decode(self.content) if self.encoding == "base64" else self.content.encode()
        if self.path == "README.md" and (errors := read_card(content.decode(errors="replace")).errors):
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
        change.files[self.path] = change.repository.put(content)


class _PutLfsFile(BaseModel):
    path: _Path
    oid: str = Field(pattern=r"^[0-9a-f]{64}$")

    def apply(self, change: _Change) -> None:
        blob = change.repository.blob(self.oid)
        if not blob.exists():
            raise HubError(400, f"LFS object {self.oid} of {self.path} was not uploaded to {change.repository.id}")
        change.files[self.path] = File.large(self.oid, blob.stat().st_size)


class _DeleteFile(BaseModel):
    path: _Path

    def apply(self, change: _Change) -> None:
        change.remove([self.path] if self.path in change.files else [], self.path)


class _DeleteFolder(BaseModel):
    path: str

    def apply(self, change: _Change) -> None:
        folder = self.path.rstrip("/") + "/"
        change.remove([path for path in change.files if path.startswith(folder)], self.path)


class _CopyFile(BaseModel):
    path: _Path
    srcPath: _Path  # noqa: N815 - the protocol's spelling
    srcRevision: str = ""  # noqa: N815

    def apply(self, change: _Change) -> None:
        source = change.repository.resolve(self.srcRevision) if self.srcRevision else change.base
        if self.srcPath not in source.files:
            raise entry_not_found(self.srcPath, source.id)
        change.files[self.path] = source.files[self.srcPath]


_Operation = _PutFile | _PutLfsFile | _DeleteFile | _DeleteFolder | _CopyFile
_OPERATIONS: dict[str, type[_Operation]] = {
    "file": _PutFile,
    "lfsFile": _PutLfsFile,
    "deletedFile": _DeleteFile,
    "deletedFolder": _DeleteFolder,
    "copyFile": _CopyFile,
}


async def validate_yaml(request: web.Request) -> web.Response:
    """POST /api/validate-yaml: the errors in a README.md."""
    card = read_card(_Readme.model_validate_json(await request.read()).content)
    answer = {
        "errors": [{"message": text} for text in card.errors],
        "warnings": [{"message": t} for t in card.warnings],
    }
    return web.json_response(answer, status=400 if card.errors else 200)


async def preupload(request: web.Request) -> web.Response:
    """POST …/preupload/REVISION: for each file, whether it uses LFS, and the existing file of its name."""
    asked = _Preupload.model_validate_json(await request.read())
    present = writable(request).resolve(request.match_info["revision"]).files
    answers = [
        {
            "path": file.path,
            "uploadMode": "lfs" if file.needs_lfs() else "regular",
            "shouldIgnore": False,
            "oid": present[file.path].etag if file.path in present else None,
        }
        for file in asked.files
    ]
    return web.json_response({"files": answers})


async def commit(request: web.Request) -> web.Response:
    """POST …/commit/BRANCH with one JSON object per line: a header, then operations.

    412 if the branch is no longer at the header's `parentCommit`. After `writable` nothing is awaited, so two
    concurrent pushes become two consecutive commits.
    """
    header, operations = _parse(await request.read())
    repository, branch = writable(request), request.match_info["revision"]
    base = repository.resolve(branch)
    if request.query.get("create_pr") or branch not in repository.settings.branches:
        raise HubError(400, f"this Hub commits to branches only, and {branch} is none or a pull request was asked for")
    if header.parentCommit and header.parentCommit != base.id:
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    change = _Change(repository, base, dict(base.files))
    for operation in operations:
        operation.apply(change)
    new = repository.commit(
        branch, change.files, author=author(request), title=header.summary, message=header.description
    )
    url = f"{page(request, repository)}/commit/{new.id}"
    return web.json_response({"success": True, "commitOid": new.id, "commitUrl": url, "hookOutput": ""})


def _parse(body: bytes) -> tuple[_Header, list[_Operation]]:
    lines = [_Line.model_validate_json(line) for line in body.splitlines() if line.strip()]
    if not lines or lines[0].key != "header":
        raise HubError(400, "a commit begins with its header")
    if unknown := {line.key for line in lines[1:]} - _OPERATIONS.keys():
        raise HubError(400, f"unknown operation {', '.join(sorted(unknown))}: expected {', '.join(_OPERATIONS)}")
    operations = [_OPERATIONS[line.key].model_validate(line.value) for line in lines[1:]]
    return _Header.model_validate(lines[0].value), operations

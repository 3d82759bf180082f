"""Repositories on disk: immutable commits, movable refs, and content by SHA-256. They survive a restart.

    DIR/{models,datasets}/OWNER/NAME/repository.json   settings, branches and tags
                                    /commits/SHA.json  message, parent and complete file list of one commit
                                    /blobs/SHA256      content; separate for each repository, so that knowing a
                                                       digest gives no access to files of another repository
                                    /uploads/          incomplete uploads

All methods are synchronous and short, so each of them is atomic in the server's event loop.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tunemill_dev.hub.errors import HubError, revision_not_found

Gated = Literal["auto", "manual", False]
Kind = Literal["models", "datasets"]


class File(BaseModel):
    """One file of a commit. `oid` is git's object id of the content, or of its LFS pointer."""

    model_config = ConfigDict(frozen=True)
    sha256: str
    size: int
    oid: str
    pointer_size: int = 0
    """Size of the LFS pointer in bytes; 0 for a file that is stored in git."""

    @classmethod
    def regular(cls, content: bytes) -> File:
        """Return a file that is stored in git."""
        return cls(sha256=hashlib.sha256(content).hexdigest(), size=len(content), oid=_git_blob(content))

    @classmethod
    def large(cls, sha256: str, size: int) -> File:
        """Return a file that is stored in LFS."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(sha256=sha256, size=size, oid=_git_blob(pointer), pointer_size=len(pointer))

    @property
    def etag(self) -> str:
        """The ETag, by which clients name their cached copy: SHA-256 for LFS, git's SHA-1 otherwise."""
        return self.sha256 if self.pointer_size else self.oid


class Commit(BaseModel):
    """A commit with all of its files by path."""

    model_config = ConfigDict(frozen=True)
    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime
    files: dict[str, File]


class Settings(BaseModel):
    """The mutable state of a repository, except its commits."""

    private: bool = False
    gated: Gated = False
    granted: list[str] = []
    """Users with access to the gated content."""
    created: datetime
    branches: dict[str, str] = {}
    tags: dict[str, str] = {}


class Repository:
    """One repository. `save` stores changes of `settings`."""

    def __init__(self, kind: Kind, folder: Path, settings: Settings) -> None:
        self.kind = kind
        self.folder = folder
        self.settings = settings
        self.namespace = folder.parent.name
        self.id = f"{folder.parent.name}/{folder.name}"

    def save(self) -> None:
        """Write settings and refs atomically."""
        _write_atomically(self.folder / "repository.json", self.settings.model_dump_json().encode())

    def resolve(self, revision: str) -> Commit:
        """Return the commit of a branch, tag or commit id. HubError 404 RevisionNotFound if there is none."""
        commit_id = (self.settings.tags | self.settings.branches).get(revision, revision)
        path = self.folder / "commits" / f"{commit_id}.json"
        if not _is_commit_id(commit_id) or not path.exists():
            raise revision_not_found(revision)
        return Commit.model_validate_json(path.read_bytes())

    def history(self, revision: str) -> Iterator[Commit]:
        """Yield commits from the revision back to the first."""
        commit: Commit | None = self.resolve(revision)
        while commit:
            yield commit
            commit = self.resolve(commit.parent) if commit.parent else None

    def commit(self, branch: str, files: Mapping[str, File], *, author: str, title: str, message: str = "") -> Commit:
        """Add a commit with exactly these `files`, and move the branch to it."""
        parent = self.settings.branches.get(branch)
        new = Commit(
            id=secrets.token_hex(20),
            parent=parent,
            title=title,
            message=message,
            author=author,
            date=datetime.now(UTC),
            files=dict(sorted(files.items())),
        )
        _write_atomically(self.folder / "commits" / f"{new.id}.json", new.model_dump_json().encode())
        self.settings.branches[branch] = new.id
        self.save()
        return new

    def blob(self, sha256: str) -> Path:
        """Return the path of this content, if it exists."""
        return self.folder / "blobs" / sha256

    def put(self, content: bytes) -> File:
        """Store the content of a regular file."""
        file = File.regular(content)
        _write_atomically(self.blob(file.sha256), content)
        return file

    def part(self, sha256: str, number: int) -> Path:
        """Return the path of a part of a multipart upload."""
        return self.folder / "uploads" / sha256 / str(number)

    def receive(self, sha256: str) -> Receiver:
        """Return a writer for content. The blob appears when the content is complete and correct."""
        return Receiver(self.folder / "uploads" / secrets.token_hex(8), self.blob(sha256), lambda d: d == sha256)

    def receive_part(self, sha256: str, number: int) -> Receiver:
        """Return a writer for one part of a multipart upload."""
        return Receiver(self.folder / "uploads" / secrets.token_hex(8), self.part(sha256, number), lambda _: True)

    def join_parts(self, sha256: str, digests: list[str]) -> None:
        """Create the blob from its parts. HubError 400 if a part is missing or does not match its digest."""
        with self.receive(sha256) as whole:
            for number, digest in enumerate(digests, start=1):
                path = self.part(sha256, number)
                if not path.exists():
                    raise HubError(400, f"part {number} of {sha256} was not uploaded")
                with path.open("rb") as part:
                    if hashlib.file_digest(part, "sha256").hexdigest() != digest:
                        raise HubError(400, f"part {number} of {sha256} is not the one that was uploaded")
                    part.seek(0)
                    while chunk := part.read(1 << 20):
                        whole.write(chunk)
        shutil.rmtree(self.part(sha256, 1).parent)


class Receiver:
    """An upload: written to a temporary file, checked, and moved into place. HubError 400 if the check fails."""

    def __init__(self, temporary: Path, target: Path, accepts: Callable[[str], bool]) -> None:
        self._temporary, self._target, self._accepts = temporary, target, accepts
        self._digest = hashlib.sha256()
        temporary.parent.mkdir(parents=True, exist_ok=True)
        self._file = temporary.open("wb")

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self._digest.update(chunk)
        self._file.write(chunk)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if failure is None and self._accepts(self.digest):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.replace(self._target)
            return
        self._temporary.unlink()
        if failure is None:
            raise HubError(400, f"the content has SHA-256 {self.digest}, not {self._target.name}")


class Store:
    """All repositories under one folder."""

    def __init__(self, root: Path) -> None:
        """Remove uploads that a restart interrupted. Clients start them again."""
        self.root = root
        for unfinished in root.glob("*/*/*/uploads"):
            shutil.rmtree(unfinished)

    def find(self, kind: Kind, repo_id: str) -> Repository | None:
        """Return the repository with this id, or None."""
        folder = self.root / kind / repo_id
        if not (folder / "repository.json").exists():
            return None
        return Repository(kind, folder, Settings.model_validate_json((folder / "repository.json").read_bytes()))

    def create(self, kind: Kind, repo_id: str, *, private: bool, author: str, files: Mapping[str, bytes]) -> Repository:
        """Create a repository with one commit on `main`."""
        settings = Settings(private=private, created=datetime.now(UTC))
        repository = Repository(kind, self.root / kind / repo_id, settings)
        first = {path: repository.put(content) for path, content in files.items()}
        repository.commit("main", first, author=author, title="initial commit")
        return repository

    def delete(self, repository: Repository) -> None:
        """Remove a repository. It is renamed first, so that a crash leaves no partial one visible."""
        grave = self.root / "deleted" / secrets.token_hex(8)
        grave.parent.mkdir(exist_ok=True)
        repository.folder.rename(grave)
        shutil.rmtree(grave)


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _is_commit_id(text: str) -> bool:
    return len(text) == 40 and set(text) <= set("0123456789abcdef")


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.write_bytes(content)
    temporary.replace(path)

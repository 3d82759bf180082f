"""Brings a folder to a repository on the Hub, and is not put off by what passes.

A branch is changed by one commit or not at all. Calls that a busy server refused, or whose answer was lost, are made
again; a refusal that nobody takes back (a token without the right, a full account) ends the push at once.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, LocalEntryNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined] # it is public all the same
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import tracing
from tunemill_trainer.storage.checksums import sha256_of
from tunemill_trainer.storage.hub import WRITE_FIELD, hub_errors

CONTENTS = "tunemill.json"
"""Lists, under `files`, what a release consists of. By it the next release knows which files it may remove."""

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Between the attempts of one call, when the server does not say how long to wait."""
LONGEST_WAIT_SECONDS = 300.0
"""A server that asks for more is left alone: the stage ends, and is tried again later."""
_PASSING = {408, 412, 425, 429}
"""As do all answers from 500 on, which proxies have numbers of their own for."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Repository:
    """A model repository on the Hub. All methods raise StageError with the reasons of `hub.hub_errors`."""

    def __init__(self, api: HfApi, name: str, pause: Callable[[float], None]) -> None:
        """Nothing is asked of the server yet.

        Args:
            api: the client, with its token.
            name: owner/name.
            pause: waits for so many seconds; what it raises ends the push.
        """
        self.name = name
        self._api = api
        self._pause = pause

    def create(self, *, private: bool) -> None:
        """Create the repository, unless it is there; then it stays as private or public as it is."""
        # Asked first: a token for this repository alone may not create any, and is told so even when this one is there.
        if not self._call(lambda: self._api.repo_exists(self.name)):
            self._call(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))

    def offers(self, revision: str, branch: str) -> bool:
        """Return whether a branch still holds the release of a commit.

        It does not when either is gone, nor when another release came after it. What people commit beside a release, to
        its card for example, is left alone.
        """
        released = self._release(revision)
        return released is not None and released == self._release(branch)

    def head(self, branch: str) -> str:
        """Return the commit that a branch points at; a branch that does not exist is begun where main is."""
        for _ in range(2):
            refs = self._call(lambda: self._api.list_repo_refs(self.name))
            for ref in refs.branches:
                if ref.name == branch:
                    return ref.target_commit
            self.begin(branch, "main")
        raise StageError(Reason.HUB_UNREACHABLE, f"{self.name} has no branch {branch} although it was just created")

    def begin(self, branch: str, revision: str) -> None:
        """Create a branch at a revision, unless it is there."""
        self._call(lambda: self._api.create_branch(self.name, branch=branch, revision=revision, exist_ok=True))

    def remove(self, branch: str) -> None:
        """Delete a branch, unless it is gone."""
        self._call(lambda: _unless_gone(lambda: self._api.delete_branch(self.name, branch=branch)))

    def clear(self, branch: str) -> None:
        """Delete a branch that is no longer needed, if that can be done."""
        try:
            self.remove(branch)
        except StageError as error:
            # Not worth a failure, nor to hide the one on its way.
            _log.warning("branch %s of %s could not be removed: %s", branch, self.name, error)

    def holds(self, folder: Path, revision: str) -> bool:
        """Return whether all files of a folder are at a revision, byte for byte."""
        return self._missing(folder, self._tree(revision)) == []

    def put(self, folder: Path, branch: str, message: str) -> str:
        """Make a branch hold a folder, and drop what an earlier release of ours had in its stead.

        Returns:
            The commit: a new one, or the branch's head when that has it all.
        """
        for wait in WAITS_SECONDS:
            head = self.head(branch)
            tree = self._tree(head)
            missing, obsolete = self._missing(folder, tree), self._obsolete(folder, head, tree)
            if not missing and not obsolete:
                return head
            try:
                return self._commit(folder, branch, head, message, missing, obsolete)
            except _MovedError:
                # Someone else's commit, or our own whose answer was lost; the new head tells, when the Hub knows it.
                _log.info("%s of %s has moved on from %s: looking again in %.0f s", branch, self.name, head, wait)
                self._pause(wait)
        times = len(WAITS_SECONDS)
        raise StageError(
            Reason.HUB_UNREACHABLE, f"branch {branch} of {self.name} moved on {times} times while it was pushed to"
        )

    @tracing.step("push")
    def put_proven(self, folder: Path, branch: str, candidate: str, message: str, prove: Callable[[str], None]) -> str:
        """Make a branch hold a folder that was proven as a user would download it; until then the branch stays.

        Args:
            folder: what is pushed.
            branch: the user's.
            candidate: a branch for the proof, which is gone afterwards.
            message: of the commit.
            prove: is given a commit with the folder; what it raises ends the push.

        Returns:
            The commit: a new one, or the branch's head when that has it all.
        """
        head = self.head(branch)
        if self.holds(folder, head):
            prove(head)
            return head
        with self._candidate(candidate, head):
            prove(self.put(folder, candidate, message))
            commit = self.put(folder, branch, message)
        if not self.holds(folder, commit):
            raise StageError(Reason.PROOF_FAILED, f"{self.name} at {commit} does not hold the files that were pushed")
        return commit

    @contextmanager
    def _candidate(self, branch: str, head: str) -> Iterator[None]:
        """Begin a branch anew, whatever an earlier attempt left of it, and remove it afterwards."""
        self.remove(branch)
        self.begin(branch, head)
        try:
            yield
        finally:
            self.clear(branch)

    def tag(self, name: str, commit: str) -> None:
        """Make a tag point at a commit; a tag of that name which points elsewhere is moved."""
        refs = self._call(lambda: self._api.list_repo_refs(self.name))
        present = {ref.name: ref.target_commit for ref in refs.tags}
        if present.get(name) == commit:
            return
        if name in present:
            _log.info("tag %s of %s is moved from %s to %s", name, self.name, present[name], commit)
            self._call(lambda: _unless_gone(lambda: self._api.delete_tag(self.name, tag=name)))
        self._call(lambda: self._api.create_tag(self.name, tag=name, revision=commit, exist_ok=True))

    def download(self, revision: str, into: Path) -> Path:
        """Download a revision into a folder, past every cache."""
        self._call(lambda: self._api.snapshot_download(self.name, revision=revision, local_dir=into))
        return into

    def read(self, path: str, revision: str, largest: int) -> bytes | None:
        """Return a file of a revision; None where it is larger, or there is no such file or revision."""
        found = self._call(lambda: _unless_gone(lambda: self._api.get_paths_info(self.name, path, revision=revision)))
        if not any(isinstance(entry, RepoFile) and entry.size <= largest for entry in found or ()):
            return None
        return Path(self._call(lambda: self._api.hf_hub_download(self.name, path, revision=revision))).read_bytes()

    def _release(self, revision: str) -> str | None:
        """Return what tells the release at a revision from every other one; None where there is none."""
        found = self._call(
            lambda: _unless_gone(lambda: self._api.get_paths_info(self.name, CONTENTS, revision=revision))
        )
        return next((entry.blob_id for entry in found or () if isinstance(entry, RepoFile)), None)

    def _tree(self, revision: str) -> dict[str, RepoFile]:
        entries = self._call(lambda: list(self._api.list_repo_tree(self.name, revision=revision, recursive=True)))
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _missing(self, folder: Path, tree: dict[str, RepoFile]) -> list[str]:
        return [path for path in contents(folder) if path not in tree or not _same(folder / path, tree[path])]

    def _obsolete(self, folder: Path, head: str, tree: dict[str, RepoFile]) -> list[str]:
        if CONTENTS not in tree:
            return []
        path = self._call(lambda: self._api.hf_hub_download(self.name, CONTENTS, revision=head))
        try:
            listed = set(map(str, json.loads(Path(path).read_text(encoding="utf-8"))["files"]))
        except (ValueError, KeyError, TypeError):
            _log.warning("%s of %s is not ours: no file of an earlier release is removed", CONTENTS, self.name)
            return []
        return sorted(listed & tree.keys() - set(contents(folder)))

    def _commit(
        self, folder: Path, branch: str, parent: str, message: str, missing: list[str], obsolete: list[str]
    ) -> str:
        def commit() -> str:
            # Made anew for every attempt: create_commit changes them.
            operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
                *(CommitOperationAdd(path, folder / path) for path in missing),
                *(CommitOperationDelete(path) for path in obsolete),
            ]
            try:
                info = self._api.create_commit(
                    self.name, operations, commit_message=message, revision=branch, parent_commit=parent
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 412:
                    raise _MovedError from error
                raise
            except RuntimeError as error:
                raise _unwrapped(error) from error
            return info.oid

        return self._call(commit)

    def _call(self, call: Callable[[], _T]) -> _T:
        waits = iter(WAITS_SECONDS)
        with hub_errors(WRITE_FIELD, self.name):
            while True:
                try:
                    return call()
                except (
                    HfHubHTTPError,
                    httpx2.TransportError,
                    LocalEntryNotFoundError,
                    IncompleteSnapshotError,
                ) as error:
                    known = _unwrapped(error)
                    wait = _wait(known, waits)
                    if wait is None:
                        raise known from error
                    _log.warning("the Hub failed, trying again in %.0f s: %s", wait, _first_line(known))
                    self._pause(wait)


def contents(folder: Path) -> list[str]:
    """Return the paths of all files of a folder, relative, with slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class _MovedError(Exception):
    """The branch is no longer where it was."""


def _unless_gone(call: Callable[[], _T]) -> _T | None:
    """Return what a call returns; None when what it is about does not exist."""
    try:
        return call()
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return None


def _unwrapped(error: Exception) -> Exception:
    """Return what the Hub or its storage answered, which huggingface_hub wraps for uploads and downloads."""
    cause = error.__cause__
    return cause if isinstance(cause, HfHubHTTPError | httpx2.TransportError) else error


def _wait(error: Exception, waits: Iterator[float]) -> float | None:
    """Return how long to wait before the next attempt; None when another attempt cannot help."""
    asked = 0.0
    if isinstance(error, HfHubHTTPError):
        if not _passes(error.response):
            return None
        asked = _asked_for(error)
    wait = next(waits, None)
    return None if wait is None or asked > LONGEST_WAIT_SECONDS else max(wait, asked)


def _passes(answer: httpx2.Response) -> bool:
    if answer.status_code == 403 and answer.request.method == "PUT":
        # The storage refuses an upload whose address has expired; the next attempt is given another address.
        return True
    return answer.status_code in _PASSING or answer.status_code >= 500


def _asked_for(error: HfHubHTTPError) -> float:
    """Return the seconds that the server asks to wait, in either way in which the Hub says so."""
    after = error.response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(error.response.headers)
    exhausted = limit.reset_in_seconds if limit is not None and limit.remaining == 0 else 0
    return max(float(after) if after.isdecimal() else 0.0, float(exhausted))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)


def _same(path: Path, there: RepoFile) -> bool:
    if path.stat().st_size != there.size:
        return False
    if there.lfs is not None:
        return sha256_of(path) == there.lfs.sha256
    content = path.read_bytes()
    # Git's name of a file: the digest of a header with its size, and of its contents.
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == there.blob_id

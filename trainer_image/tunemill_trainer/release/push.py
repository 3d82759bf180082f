"""Pushes a folder to a repository on the Hub, with retries of transient errors.

A branch is changed by a single commit or not at all. Calls that failed because of load, or whose response was lost,
are repeated. A permanent error, such as a missing permission or an exceeded quota, ends the push at once.
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
"""Lists the files of a release under `files`. The next release deletes those of them that it does not contain."""

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Waits between the attempts of a call, unless the server asks for a longer one."""
LONGEST_WAIT_SECONDS = 300.0
"""If the server asks for a longer wait, the call fails, and the stage is retried later."""
_TRANSIENT_STATUS = {408, 412, 425, 429}
"""Status codes that are retried, in addition to all from 500 on."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Repository:
    """A model repository on the Hub. All methods raise StageError with the reasons of `hub.hub_errors`."""

    def __init__(self, api: HfApi, name: str, pause: Callable[[float], None]) -> None:
        """Create the client object. It sends no request.

        Args:
            api: the Hub client, with its token.
            name: owner/name.
            pause: waits for a number of seconds; an exception that it raises ends the push.
        """
        self.name = name
        self._api = api
        self._pause = pause

    def create(self, *, private: bool) -> None:
        """Create the repository if it does not exist. An existing one keeps its visibility."""
        # Check first: for a token limited to this repository, create_repo fails even if the repository exists.
        if not self._call(lambda: self._api.repo_exists(self.name)):
            self._call(lambda: self._api.create_repo(self.name, private=private, exist_ok=True))

    def has_release(self, revision: str, branch: str) -> bool:
        """Return whether the branch still has the release of a commit.

        It does not if either was deleted, or if another release followed. Commits that leave the release's list of
        files unchanged, such as an edit of the model card, do not matter.
        """
        released = self._release(revision)
        return released is not None and released == self._release(branch)

    def head(self, branch: str) -> str:
        """Return the commit at which a branch points; a missing branch is created from main."""
        for _ in range(2):
            refs = self._call(lambda: self._api.list_repo_refs(self.name))
            for ref in refs.branches:
                if ref.name == branch:
                    return ref.target_commit
            self.create_branch(branch, "main")
        raise StageError(
            Reason.HUB_UNREACHABLE, f"branch {branch} of {self.name} is missing although it was just created"
        )

    def create_branch(self, branch: str, revision: str) -> None:
        """Create a branch at a revision if it does not exist."""
        self._call(lambda: self._api.create_branch(self.name, branch=branch, revision=revision, exist_ok=True))

    def delete_branch(self, branch: str) -> None:
        """Delete a branch if it exists."""
        self._call(lambda: _none_if_missing(lambda: self._api.delete_branch(self.name, branch=branch)))

    def discard_branch(self, branch: str) -> None:
        """Delete a branch that is no longer needed. A failure is logged and otherwise ignored."""
        try:
            self.delete_branch(branch)
        except StageError as error:
            # Raising it could replace the exception that is being handled.
            _log.warning("cannot delete branch %s of %s: %s", branch, self.name, error)

    def holds(self, folder: Path, revision: str) -> bool:
        """Return whether a revision has all files of a folder, byte for byte."""
        return self._missing(folder, self._tree(revision)) == []

    def put(self, folder: Path, branch: str, message: str) -> str:
        """Commit a folder to a branch, and delete the files of the previous release that the folder does not have.

        Returns:
            The new commit, or the branch's head if it already has these files.
        """
        for wait in WAITS_SECONDS:
            head = self.head(branch)
            tree = self._tree(head)
            missing, obsolete = self._missing(folder, tree), self._obsolete(folder, head, tree)
            if not missing and not obsolete:
                return head
            try:
                return self._commit(folder, branch, head, message, missing, obsolete)
            except _BranchMovedError:
                # Another commit, or this one if its response was lost. Compare again with the new head.
                _log.info("branch %s of %s is no longer at %s: retrying in %.0f s", branch, self.name, head, wait)
                self._pause(wait)
        times = len(WAITS_SECONDS)
        raise StageError(
            Reason.HUB_UNREACHABLE, f"branch {branch} of {self.name} changed {times} times during the push"
        )

    @tracing.step("push")
    def put_verified(
        self, folder: Path, branch: str, candidate: str, message: str, prove: Callable[[str], None]
    ) -> str:
        """Push a folder to a temporary branch, verify it there, and then commit it to the branch of the release.

        Args:
            folder: the files to push.
            branch: the branch of the release. It does not change before `prove` returns.
            candidate: the temporary branch; deleted afterwards.
            message: the commit message.
            prove: called with a commit that has the files; an exception that it raises ends the push.

        Returns:
            The new commit, or the branch's head if it already has these files.

        Raises:
            StageError: ProofFailed, if the commit does not have the files of the folder; what `prove` raises.
        """
        head = self.head(branch)
        if self.holds(folder, head):
            prove(head)
            return head
        with self._candidate(candidate, head):
            prove(self.put(folder, candidate, message))
            commit = self.put(folder, branch, message)
        if not self.holds(folder, commit):
            raise StageError(Reason.PROOF_FAILED, f"{self.name} at {commit} does not have the pushed files")
        return commit

    @contextmanager
    def _candidate(self, branch: str, head: str) -> Iterator[None]:
        """Create a temporary branch, replacing one that an earlier attempt left, and delete it afterwards."""
        self.delete_branch(branch)
        self.create_branch(branch, head)
        try:
            yield
        finally:
            self.discard_branch(branch)

    def tag(self, name: str, commit: str) -> None:
        """Point a tag at a commit; an existing tag of that name is moved."""
        refs = self._call(lambda: self._api.list_repo_refs(self.name))
        present = {ref.name: ref.target_commit for ref in refs.tags}
        if present.get(name) == commit:
            return
        if name in present:
            _log.info("moving tag %s of %s from %s to %s", name, self.name, present[name], commit)
            self._call(lambda: _none_if_missing(lambda: self._api.delete_tag(self.name, tag=name)))
        self._call(lambda: self._api.create_tag(self.name, tag=name, revision=commit, exist_ok=True))

    def download(self, revision: str, into: Path) -> Path:
        """Download a revision into a folder, without the Hub's local cache."""
        self._call(lambda: self._api.snapshot_download(self.name, revision=revision, local_dir=into))
        return into

    def read(self, path: str, revision: str, largest: int) -> bytes | None:
        """Return the content of a file; None if it is larger than `largest` bytes, or does not exist."""
        found = self._call(
            lambda: _none_if_missing(lambda: self._api.get_paths_info(self.name, path, revision=revision))
        )
        if not any(isinstance(entry, RepoFile) and entry.size <= largest for entry in found or ()):
            return None
        return Path(self._call(lambda: self._api.hf_hub_download(self.name, path, revision=revision))).read_bytes()

    def _release(self, revision: str) -> str | None:
        """Return an id of the release at a revision: the Git blob id of CONTENTS; None if there is no release."""
        found = self._call(
            lambda: _none_if_missing(lambda: self._api.get_paths_info(self.name, CONTENTS, revision=revision))
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
            _log.warning("cannot parse %s of %s: files of an earlier release are not deleted", CONTENTS, self.name)
            return []
        return sorted(listed & tree.keys() - set(contents(folder)))

    def _commit(
        self, folder: Path, branch: str, parent: str, message: str, missing: list[str], obsolete: list[str]
    ) -> str:
        def commit() -> str:
            # New objects for every attempt, because create_commit modifies them.
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
                    raise _BranchMovedError from error
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
                    cause = _unwrapped(error)
                    wait = _wait(cause, waits)
                    if wait is None:
                        raise cause from error
                    _log.warning("Hub request failed, retrying in %.0f s: %s", wait, _first_line(cause))
                    self._pause(wait)


def contents(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder, with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class _BranchMovedError(Exception):
    """The branch's head is not the expected parent commit."""


def _none_if_missing(call: Callable[[], _T]) -> _T | None:
    """Return the result of a call; None for a response 404."""
    try:
        return call()
    except HfHubHTTPError as error:
        if error.response.status_code != 404:
            raise
        return None


def _unwrapped(error: Exception) -> Exception:
    """Return the HTTP error inside an exception with which huggingface_hub wraps it for uploads and downloads."""
    cause = error.__cause__
    return cause if isinstance(cause, HfHubHTTPError | httpx2.TransportError) else error


def _wait(error: Exception, waits: Iterator[float]) -> float | None:
    """Return the seconds to wait before the next attempt; None if the error is permanent or no attempt is left."""
    requested = 0.0
    if isinstance(error, HfHubHTTPError):
        if not _is_transient(error.response):
            return None
        requested = _retry_after(error)
    wait = next(waits, None)
    return None if wait is None or requested > LONGEST_WAIT_SECONDS else max(wait, requested)


def _is_transient(response: httpx2.Response) -> bool:
    if response.status_code == 403 and response.request.method == "PUT":
        # The presigned upload URL has expired; the next attempt gets a new one.
        return True
    return response.status_code in _TRANSIENT_STATUS or response.status_code >= 500


def _retry_after(error: HfHubHTTPError) -> float:
    """Return the wait that the server requests, by the Retry-After header or by the Hub's rate limit headers."""
    after = error.response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(error.response.headers)
    exhausted = limit.reset_in_seconds if limit is not None and limit.remaining == 0 else 0
    return max(float(after) if after.isdecimal() else 0.0, float(exhausted))


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), type(error).__name__)


def _same(path: Path, remote: RepoFile) -> bool:
    if path.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return sha256_of(path) == remote.lfs.sha256
    content = path.read_bytes()
    # The Git blob id: the digest of a header with the size, and the content.
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == remote.blob_id

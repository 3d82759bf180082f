"""Releases in a local folder, for `tunemill run` without a Hub.

    FOLDER/releases/<revision>/…    the files of a release; the revision is a digest of them
    FOLDER/<branch>                 a symbolic link to the release on this branch; tags are links, too

A branch moves to another release atomically: its link is replaced.
"""

import hashlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.release.push import CONTENTS, contents
from tunemill_trainer.storage.checksums import sha256_of

_RELEASES = "releases"
_REVISION_DIGITS = 12


def path_of(folder: Path, revision: str) -> Path:
    """Return where the files of a revision, branch or tag are."""
    release = folder / _RELEASES / revision
    return release if release.is_dir() else folder / _link_name(revision)


class LocalReleases:
    """The interface of `push.Repository` for a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, *, private: bool) -> None:
        """Create the folder; a private one is readable by its owner only. An existing folder keeps its mode."""
        releases = self._folder / _RELEASES
        if not releases.exists():
            releases.mkdir(parents=True)
            self._folder.chmod(0o700 if private else 0o755)

    def has_release(self, revision: str, branch: str) -> bool:
        """Return whether the branch still points at the release of a revision; files added later are ignored."""
        released = self.read(CONTENTS, revision, 1 << 30)
        return released is not None and released == self.read(CONTENTS, branch, 1 << 30)

    def put_verified(
        self, folder: Path, branch: str, candidate: str, message: str, prove: Callable[[str], None]
    ) -> str:
        """Copy a folder into a new release, verify it, and then point the branch at it.

        Args:
            folder: the files of the release.
            branch: the branch of the release.
            candidate: unused: a release without a link is not visible to users.
            message: unused: a local release has no commit message.
            prove: called with the revision before the branch moves. If it raises, the new release is removed.

        Returns:
            The revision.
        """
        del candidate, message
        names = contents(folder)
        listing = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)
        revision = hashlib.sha256(listing.encode()).hexdigest()[:_REVISION_DIGITS]
        release = self._folder / _RELEASES / revision
        is_new = not release.is_dir()
        if is_new:
            unfinished = self._folder / _RELEASES / f".unfinished-{secrets.token_hex(4)}"
            try:
                shutil.copytree(folder, unfinished)
                unfinished.rename(release)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        try:
            prove(revision)
        except BaseException:
            if is_new:
                shutil.rmtree(release)
            raise
        self._link(branch, revision)
        self._prune()
        return revision

    def tag(self, name: str, commit: str) -> None:
        """Point a tag at a revision; an existing tag of that name is moved."""
        self._link(name, commit)

    def discard_branch(self, branch: str) -> None:
        """Delete a branch if it exists, and its release unless another branch or tag points at it."""
        (self._folder / _link_name(branch)).unlink(missing_ok=True)
        self._prune()

    def download(self, revision: str, into: Path) -> Path:
        """Copy a revision into a folder."""
        shutil.copytree(path_of(self._folder, revision), into, dirs_exist_ok=True)
        return into

    def read(self, path: str, revision: str, largest: int) -> bytes | None:
        """Return the content of a file; None if it is larger than `largest` bytes, or does not exist."""
        file = path_of(self._folder, revision) / path
        if not file.is_file() or file.stat().st_size > largest:
            return None
        return file.read_bytes()

    def _link(self, name: str, revision: str) -> None:
        link = self._folder / _link_name(name)
        unfinished = self._folder / f".unfinished-{secrets.token_hex(4)}"
        unfinished.symlink_to(Path(_RELEASES) / revision)
        try:
            unfinished.replace(link)
        except OSError as error:
            unfinished.unlink()
            raise StageError(
                Reason.INVALID_SPEC,
                f"expected {link.name} in the folder of spec.publish.repository, {self._folder}, to be a symbolic link "
                "of an earlier release; found another file or folder",
                "Set spec.publish.repository to an empty folder, or to one that holds releases only.",
            ) from error

    def _prune(self) -> None:
        """Delete the releases at which no branch and no tag points."""
        held = {path.readlink() for path in self._folder.iterdir() if path.is_symlink()}
        for release in (self._folder / _RELEASES).iterdir():
            if Path(_RELEASES) / release.name not in held:
                shutil.rmtree(release)


def _link_name(branch: str) -> str:
    return branch.replace("/", "-")

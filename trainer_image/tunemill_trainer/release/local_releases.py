"""Releases in a folder of this machine, for `tunemill-trainer run` without a Hub.

    FOLDER/releases/<revision>/…    the files; a revision is a digest of them
    FOLDER/<branch>                 a link to the release that the branch holds; tags are links, too

A branch changes from one release to the next in one step: its link is replaced.
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
    """The same as `push.Repository`, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, *, private: bool) -> None:
        """Make the folder; other users of the machine cannot read a new one that is private."""
        releases = self._folder / _RELEASES
        if not releases.exists():
            releases.mkdir(parents=True)
            self._folder.chmod(0o700 if private else 0o755)

    def offers(self, revision: str, branch: str) -> bool:
        """Return whether a branch still holds the release of a revision; files added to it do not matter."""
        released = self.read(CONTENTS, revision, 1 << 30)
        return released is not None and released == self.read(CONTENTS, branch, 1 << 30)

    def put_proven(self, folder: Path, branch: str, candidate: str, message: str, prove: Callable[[str], None]) -> str:
        """Make a branch hold a folder that was proven first; until then the branch stays.

        Args:
            folder: what is released.
            branch: the user's.
            candidate: not needed here: a release that no branch holds is none.
            message: not kept.
            prove: is given a revision with the folder; what it raises ends the release.

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
        """Make a tag point at a revision; a tag of that name which points elsewhere is moved."""
        self._link(name, commit)

    def clear(self, branch: str) -> None:
        """Remove a branch, unless it is gone, and the release that only it held."""
        (self._folder / _link_name(branch)).unlink(missing_ok=True)
        self._prune()

    def download(self, revision: str, into: Path) -> Path:
        """Copy a revision into a folder."""
        shutil.copytree(path_of(self._folder, revision), into, dirs_exist_ok=True)
        return into

    def read(self, path: str, revision: str, largest: int) -> bytes | None:
        """Return a file of a revision; None where it is larger, or there is no such file or revision."""
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
                f"spec.publish.repository is {self._folder}, and {link.name} in it is no link of an earlier release",
                "Set spec.publish.repository to an empty folder, or to one that only releases were written to.",
            ) from error

    def _prune(self) -> None:
        """Remove the releases that no branch and no tag holds."""
        held = {path.readlink() for path in self._folder.iterdir() if path.is_symlink()}
        for release in (self._folder / _RELEASES).iterdir():
            if Path(_RELEASES) / release.name not in held:
                shutil.rmtree(release)


def _link_name(branch: str) -> str:
    return branch.replace("/", "-")

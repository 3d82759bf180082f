"""An object store in a local folder, for `tunemill run` without an S3 server."""

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.objects import NoObjectError, ObjectExistsError

_UNFINISHED = ".unfinished-"
"""Prefix of the names of files that are still being written. They are not listed as objects."""


class Folder:
    """An `ObjectStore` in a local folder. The folder is created with the first object. Writes are atomic."""

    def __init__(self, path: Path, field: str) -> None:
        """Create the store. It writes nothing.

        Args:
            path: absolute path of the folder.
            field: the part of the spec that names the folder, for messages.
        """
        self._path, self._field = path, field

    def uri(self, name: str) -> str:
        """See ObjectStore."""
        # `as_uri` drops a trailing slash, which marks a folder.
        return (self._path / name).as_uri() + ("/" if name.endswith("/") else "")

    def overwrites(self, name: str) -> bool:
        """See ObjectStore."""
        try:
            self.put_new(name, b"{}")
            self.put_new(name, b"{}")
        except ObjectExistsError:
            return False
        return True

    def read_small(self, name: str) -> tuple[bytes, datetime] | None:
        """See ObjectStore."""
        path = self._path / name
        with self._errors():
            try:
                return path.read_bytes(), _written_at(path)
            except FileNotFoundError:
                return None

    def put(self, name: str, body: bytes) -> None:
        """See ObjectStore."""
        with self._errors(), self._unfinished(name) as unfinished:
            unfinished.write_bytes(body)
            unfinished.replace(self._path / name)

    def put_new(self, name: str, body: bytes) -> None:
        """See ObjectStore."""
        with self._errors(), self._unfinished(name) as unfinished:
            unfinished.write_bytes(body)
            try:
                # Unlike a rename, creating a link fails if the file exists.
                os.link(unfinished, self._path / name)
            except FileExistsError as error:
                raise ObjectExistsError from error

    def upload(self, path: Path, name: str) -> None:
        """See ObjectStore."""
        with self._errors(), self._unfinished(name) as unfinished:
            shutil.copyfile(path, unfinished)
            unfinished.replace(self._path / name)

    def download(self, name: str, path: Path) -> None:
        """See ObjectStore."""
        with self._errors():
            try:
                shutil.copyfile(self._path / name, path)
            except FileNotFoundError as error:
                raise NoObjectError from error

    def list(self, prefix: str) -> dict[str, datetime]:
        """See ObjectStore."""
        found = {}
        with self._errors():
            for path in self._path.rglob("*"):
                name = path.relative_to(self._path).as_posix()
                if name.startswith(prefix) and not path.name.startswith(_UNFINISHED) and path.is_file():
                    found[name] = _written_at(path)
        return dict(sorted(found.items()))

    def delete(self, names: Iterable[str]) -> None:
        """See ObjectStore. Empty folders are removed, too."""
        for name in names:
            path = self._path / name
            with self._errors():
                path.unlink(missing_ok=True)
                for folder in path.parents:
                    if folder == self._path or not _remove_if_empty(folder):
                        break

    @contextmanager
    def _unfinished(self, name: str) -> Iterator[Path]:
        """Yield a temporary path in the folder of an object, from which it is renamed when it is complete."""
        folder = (self._path / name).parent
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_UNFINISHED}{secrets.token_hex(4)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
            raise StageError(
                Reason.INVALID_SPEC,
                f"cannot use {self._path} ({self._field}.uri) as a folder: {error.strerror} ({error.filename})",
                f"Set {self._field}.uri to a writable folder.",
            ) from error


def _written_at(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True

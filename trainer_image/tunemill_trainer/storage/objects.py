"""The interface of an object store for the workspace. Names are relative to the store, with forward slashes."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Protocol


class ObjectStore(Protocol):
    """Objects by name. All methods raise StageError, with the field of the spec, for errors that a user can fix."""

    def uri(self, name: str) -> str:
        """Return the URI of an object."""

    def overwrites(self, name: str) -> bool:
        """Write an object twice with `put_new`; return whether the second write replaced it, which is an error."""

    def read_small(self, name: str) -> tuple[bytes, datetime] | None:
        """Return the content of an object and when it was written, by the store's clock; None if it does not exist."""

    def put(self, name: str, body: bytes) -> None:
        """Write an object, replacing an existing one."""

    def put_new(self, name: str, body: bytes) -> None:
        """Write an object if it does not exist.

        Raises:
            ObjectExistsError: the object exists.
        """

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the store. Thread-safe."""

    def download(self, name: str, path: Path) -> None:
        """Copy an object into a file. Thread-safe.

        Raises:
            NoObjectError: the object does not exist.
        """

    def list(self, prefix: str) -> dict[str, datetime]:
        """Return name and time of writing of all objects whose name starts with a prefix, sorted by name."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects in this order. Missing objects are ignored."""


class ObjectExistsError(Exception):
    """An object with this name exists already."""


class NoObjectError(Exception):
    """No object with this name exists."""

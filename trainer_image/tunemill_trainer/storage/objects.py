"""What the workspace needs of a store of objects. Names are relative to the store, with slashes."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Protocol


class ObjectStore(Protocol):
    """Objects by name. Every method raises StageError, naming the store's field, for what a user can mend."""

    def uri(self, name: str) -> str:
        """Return where an object is, for people and for references."""

    def overwrites(self, name: str) -> bool:
        """Write an object twice with `put_new`; return whether the second attempt replaced it, which it must not."""

    def read_small(self, name: str) -> tuple[bytes, datetime] | None:
        """Return the bytes of an object and when it was written, by the store's clock; None where there is none."""

    def put(self, name: str, body: bytes) -> None:
        """Write an object, whether there is one or not."""

    def put_new(self, name: str, body: bytes) -> None:
        """Write an object if there is none.

        Raises:
            ObjectExistsError: there is one.
        """

    def upload(self, path: Path, name: str) -> None:
        """Copy a file into the store. May be called from several threads."""

    def download(self, name: str, path: Path) -> None:
        """Copy an object into a file. May be called from several threads.

        Raises:
            NoObjectError: there is none.
        """

    def list(self, prefix: str) -> dict[str, datetime]:
        """Return the objects whose names begin so, in the order of their names, and when each was written."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, in this order; one that is not there counts as removed."""


class ObjectExistsError(Exception):
    """There is an object of this name already."""


class NoObjectError(Exception):
    """There is no object of this name."""

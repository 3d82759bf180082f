"""The files of a data set on the local disk, and their digest."""

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

STANDARD_INPUT = Path("-")
"""What a user writes for standard input."""


@dataclass(frozen=True)
class DataFile:
    """One file of the data.

    Attributes:
        name: the name for messages, relative to the prefix.
        path: the local path.
        sha256: the SHA-256 of the bytes in the bucket.
    """

    name: str
    path: Path
    sha256: str


def file_of_user(path: Path, scratch: Path) -> DataFile:
    """Return a file from the command line. A file that can be read only once, such as a pipe, is copied.

    Args:
        path: as the user wrote it; - is standard input.
        scratch: a folder for copies.

    Raises:
        OSError: the file cannot be read.
    """
    name = name_of(path)
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError(0, "it is closed", name)
        path = _copied(sys.stdin.buffer, scratch)
    elif not path.is_file():
        with path.open("rb") as pipe:
            path = _copied(pipe, scratch)
    return DataFile(name, path, sha256="")


def _copied(stream: BinaryIO, scratch: Path) -> Path:
    copy = tempfile.NamedTemporaryFile(dir=scratch, delete=False)  # noqa: SIM115 - lives as long as its folder
    with copy:
        shutil.copyfileobj(stream, copy)
    return Path(copy.name)


def name_of(path: Path) -> str:
    """Return a path as messages show it. Its bytes need not be text."""
    return "stdin" if path == STANDARD_INPUT else os.fsencode(path).decode(errors="backslashreplace")


@dataclass(frozen=True)
class Data:
    """The files of one URI, in the order of their keys."""

    uri: str
    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of the file; for several files, of the list that sha256sum prints."""
        if len(self.files) == 1:
            return self.files[0].sha256
        listing = "".join(f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()

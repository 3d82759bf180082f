"""The files of a data set where they lie now, and their digest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of the data.

    Attributes:
        name: relative to the prefix, as messages show it.
        path: where it lies now.
        sha256: of its bytes as they lie in the bucket.
    """

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Data:
    """The files behind one uri, in the order of their keys."""

    uri: str
    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        """The sha256 of the one file; of several, that of their list as sha256sum prints it."""
        if len(self.files) == 1:
            return self.files[0].sha256
        listing = "".join(f"{file.sha256}  {file.name}\n" for file in self.files)
        return hashlib.sha256(listing.encode()).hexdigest()

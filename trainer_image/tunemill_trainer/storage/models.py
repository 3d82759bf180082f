"""The interface through which stages read a base model, from the Hub or from a local folder. See `Hub.model`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ModelCommit:
    """A repository at a commit.

    Attributes:
        id: the repository on the Hub, or the file:// URI of a folder.
        commit: the commit; for a folder, a digest of its files.
        files: the paths of its files.
    """

    id: str
    commit: str
    files: frozenset[str]


class ModelReader(Protocol):
    """Reads one base model or adapter."""

    def resolve(self, revision: str) -> ModelCommit:
        """Return the commit of a branch, tag or commit, and check that its files are readable.

        Raises:
            StageError: BaseModelNotFound, BaseModelGated, HubTokenInvalid or HubUnreachable.
        """

    def download(self, commit: str, patterns: list[str] | None = None) -> Path:
        """Return a folder with the files that match the patterns, or with all files.

        Raises:
            StageError: as `resolve`.
        """

    def etag(self, commit: str, name: str) -> str:
        """Return the Hub's identifier of a file's content: its sha256 for LFS and Xet files. Empty if unknown.

        Raises:
            StageError: as `resolve`.
        """

    def size(self, commit: str, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            StageError: as `resolve`.
        """

    def shapes(self, commit: str, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor in a safetensors file, by name, without reading the tensors.

        Raises:
            StageError: as `resolve`.
            ValueError: it is not a valid safetensors file.
        """

    def license(self, commit: str) -> dict[str, str]:
        """Return license, license_name and license_link of the model card, those that are set.

        Raises:
            StageError: as `resolve`.
        """

"""A base model or adapter in a local folder, for `tunemill run`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open
from tunemill_api.failures import Reason
from tunemill_api.local_files import local_path
from tunemill_api.plain_text import plain

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.checksums import sha256_of
from tunemill_trainer.storage.models import ModelCommit

LICENSE_FIELDS = ("license", "license_name", "license_link")
"""The fields of a model card's metadata that name its license."""
_SMALL_FILES = {"config.json", "tokenizer.json", "tokenizer_config.json"}


class LocalModel:
    """A base model or adapter in a local folder. Implements `ModelReader`."""

    def __init__(self, uri: str, field: str = "spec.baseModel") -> None:
        """Create the reader. It reads no file.

        Args:
            uri: the file:// URI of the folder.
            field: the part of the spec that names it, for messages.
        """
        self._uri, self._folder, self._field = uri, local_path(uri), field

    def resolve(self, revision: str) -> ModelCommit:
        """Return the files with a digest as their commit; `revision` is ignored.

        The digest covers the content of the small files, and the size of the others. Weights are not read here:
        `base_files` computes their digests once, and every later stage checks them.
        """
        del revision
        names = self._files()
        digest = hashlib.sha256()
        for name in sorted(names):
            path = self._folder / name
            content = sha256_of(path) if name in _SMALL_FILES else str(path.stat().st_size)
            digest.update(f"{name}\0{content}\n".encode())
        return ModelCommit(self._uri, digest.hexdigest()[:40], names)

    def download(self, commit: str, patterns: list[str] | None = None) -> Path:
        """Return the folder of the model itself."""
        del commit, patterns
        return self._folder

    def etag(self, commit: str, name: str) -> str:
        """Return an empty text: the content is not known without reading it."""
        del commit, name
        return ""

    def size(self, commit: str, name: str) -> int:
        """See ModelReader."""
        del commit
        return (self._folder / name).stat().st_size

    def shapes(self, commit: str, name: str) -> dict[str, tuple[int, ...]]:
        """See ModelReader."""
        del commit
        return shapes_of(self._folder / name)

    def license(self, commit: str) -> dict[str, str]:
        """See ModelReader."""
        del commit
        return license_of(self._card())

    def _files(self) -> frozenset[str]:
        """Return the paths of all files, relative to the folder, without hidden ones.

        Raises:
            StageError: BaseModelNotFound, when the folder does not exist or is empty.
        """
        found = frozenset(
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(self._folder).parts)
        )
        if not found:
            raise StageError(
                Reason.BASE_MODEL_NOT_FOUND,
                f"expected a folder with a model at {self._field}.id {self._folder}, found no folder or an empty one",
                f"Set {self._field}.id to the folder of a model with safetensors weights, or to its name on the Hub.",
            )
        return found

    def _card(self) -> Mapping[str, object]:
        """Return the metadata of the model card; empty if there is none, or it cannot be parsed."""
        try:
            _, block, _ = (self._folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
            found = yaml.safe_load(block)
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in a safetensors file, without loading the tensors.

    Raises:
        ValueError: it is not a valid safetensors file.
    """
    try:
        with safe_open(path, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a safetensors file: {error}") from error


def license_of(card: Mapping[str, object]) -> dict[str, str]:
    """Return the license fields of a model card's metadata that have text, without control characters."""
    found = {name: card.get(name) for name in LICENSE_FIELDS}
    return {name: plain(value) for name, value in found.items() if isinstance(value, str)}

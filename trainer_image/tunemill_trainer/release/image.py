"""A container image with the files of a model below /models, for Kubernetes image volumes and KServe.

Each file is one uncompressed layer: weights do not compress, and a registry stores a layer that two models share once.
The image has no program to run. docs/adr/0017 says why it is an image and no artifact of another type.
"""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tunemill_trainer.release.provenance import STATEMENT_FILES
from tunemill_trainer.release.push import contents
from tunemill_trainer.storage.registry import RegistryRepository, digest_of

_FOLDER = "models"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BLOCK = 512
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Layer:
    """A tar archive of one file.

    Attributes:
        path: the local file.
        header: the archive before the content of the file.
        size: of the archive in bytes.
        digest: of the archive.
    """

    path: Path
    header: bytes
    size: int
    digest: str

    def open(self) -> "_Stream":
        """Return the archive from its start, without a copy on the disk."""
        return _Stream(self.path, self.header, self.size)


@dataclass(frozen=True)
class Image:
    """The content of an image.

    Attributes:
        layers: one for each file.
        config: the image configuration.
        manifest: the image manifest.
    """

    layers: tuple[Layer, ...]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """The digest of the manifest, which identifies the image."""
        return digest_of(self.manifest)


def build(folder: Path, title: str) -> Image:
    """Return the image of a folder. The same files give the same digest.

    provenance.json and its signature are left out: they have the image's digest in them.
    """
    layers = tuple(
        _layer(folder / name, f"{_FOLDER}/{name}") for name in contents(folder) if name not in STATEMENT_FILES
    )
    # Required fields. Nothing in the image depends on the architecture, and nodes of any other pull it, too.
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "size": len(config), "digest": digest_of(config)},
            "layers": [{"mediaType": _LAYER, "size": layer.size, "digest": layer.digest} for layer in layers],
            "annotations": {"org.opencontainers.image.title": title},
        }
    )
    return Image(layers, config, manifest)


def push_verified(
    image: Image, repository: RegistryRepository, tag: str, into: Path, prove: Callable[[Path], object]
) -> None:
    """Push an image by its digest, verify a download of it, and then tag it.

    Args:
        image: the image.
        repository: where it is pushed.
        tag: of the image.
        into: an empty folder for the download.
        prove: called with the folder of the downloaded files. If it raises, the tag does not change.
    """
    for layer in image.layers:
        repository.push_blob(layer.digest, layer.open)
    repository.push_blob(digest_of(image.config), lambda: image.config)
    repository.put_manifest(image.digest, image.manifest)
    prove(_download(image, repository, into))
    repository.put_manifest(tag, image.manifest)


def _download(image: Image, repository: RegistryRepository, into: Path) -> Path:
    """Download and extract an image as a node does, and return the folder of the model."""
    manifest = json.loads(repository.manifest(image.digest) or b"{}")
    for layer in manifest.get("layers", []):
        archive = into / "layer.tar"
        with archive.open("wb") as file:
            file.writelines(repository.blob(layer["digest"]))
        with tarfile.open(archive) as opened:
            _extract(opened, into)
        archive.unlink()
    return into / _FOLDER


def _extract(layer: tarfile.TarFile, into: Path) -> None:
    """Write the files of a layer. `extractall` needs the argument `filter`, which Python has only since 3.11.4.

    The names are those of `build`: the client compares a download with the digest that was pushed.
    """
    for member in layer:
        content, place = layer.extractfile(member), into / member.name
        if content is None:
            raise ValueError(f"{member.name} in a layer is not a file")
        place.parent.mkdir(parents=True, exist_ok=True)
        with content, place.open("wb") as file:
            shutil.copyfileobj(content, file, _CHUNK)


def _layer(path: Path, name: str) -> Layer:
    info = tarfile.TarInfo(name)
    info.size, info.mode = path.stat().st_size, 0o644
    header = info.tobuf(tarfile.PAX_FORMAT)
    # The content is padded to whole blocks, and two empty blocks end the archive.
    size = len(header) + -(-info.size // _BLOCK) * _BLOCK + 2 * _BLOCK
    digest = sha256()
    stream = _Stream(path, header, size)
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return Layer(path, header, size, f"sha256:{digest.hexdigest()}")


class _Stream:
    """A tar archive of one file as the body of a request: requests takes its length, and reads it in parts."""

    def __init__(self, path: Path, header: bytes, size: int) -> None:
        self._parts = _parts(path, header, size)
        self._size = size
        self._rest = b""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(_CHUNK):
            yield chunk

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; none at the end."""
        if not self._rest:
            self._rest = next(self._parts, b"")
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def _parts(path: Path, header: bytes, size: int) -> Iterator[bytes]:
    yield header
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
        yield bytes(size - len(header) - file.tell())


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()

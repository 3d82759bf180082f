"""The digests of the files of a base model or adapter. Prepare records them in its key; stages check what they load.

A commit id is not enough: `spec.hub.endpoint` may be any server, which can serve different files for the same commit.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import BaseModel
from tunemill_trainer.storage.checksums import sha256_of
from tunemill_trainer.storage.hub import READ_FIELD
from tunemill_trainer.storage.models import ModelCommit, ModelReader

WEIGHTS: Final = "model*.safetensors"
"""The weights in safetensors format. Additional copies in a repository have other names (consolidated, original/…)."""
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
"""The weights of an adapter in safetensors format."""
LOADED: Final = ["*.json", WEIGHTS]
"""Patterns of the files that train, evaluate and publish load."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_THREADS = 8


def digests(
    reader: ModelReader, model: ModelCommit, folder: Path, patterns: list[str], weights_pattern: str = WEIGHTS
) -> dict[str, str]:
    """Return the sha256 of all files of a model that a stage loads, by name.

    Weights whose sha256 the Hub reports are not downloaded: the later stages check the files that they load.

    Args:
        reader: reads the model.
        model: the base model or adapter.
        folder: has the files that prepare downloaded.
        patterns: patterns of these files.
        weights_pattern: pattern of the weights.

    Raises:
        StageError: the reasons of `hub.hub_errors`.
    """
    weights = matching(model.files, [weights_pattern])
    with ThreadPoolExecutor(_THREADS) as pool:
        named = dict(zip(weights, pool.map(lambda name: reader.etag(model.commit, name), weights), strict=True))
    unnamed = [name for name, etag in named.items() if not _SHA256.fullmatch(etag)]
    if unnamed:
        reader.download(model.commit, unnamed)
    found = {name: etag for name, etag in named.items() if name not in unnamed}
    return {**_contents(folder, [*patterns, *unnamed]), **found}


def check(base: BaseModel, folder: Path, patterns: list[str] = LOADED, field: str = READ_FIELD) -> None:
    """Check that the files that a stage loads have the digests that prepare recorded.

    Args:
        base: the model as prepare recorded it. If it recorded no files, nothing is checked.
        folder: the downloaded files, possibly in a cache that other pods write to.
        patterns: patterns of the files that the stage loads.
        field: the part of the spec that names the model, for the message.

    Raises:
        StageError: BaseModelNotFound, when a file differs, is missing or was added.
    """
    if not base.files:
        return
    expected = {name: base.files[name] for name in matching(base.files, patterns)}
    found = _contents(folder, patterns)
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise StageError(
            Reason.BASE_MODEL_NOT_FOUND,
            f"{name} of {field} {base.id}@{base.revision} has changed since prepare: expected sha256 "
            f"{expected.get(name, '(no such file)')}, found {found.get(name, '(no such file)')}",
            "Find out why the files on the Hub (spec.hub.endpoint) or in the model cache (spec.compute.modelCache) "
            "have changed. To use them, request a new run with the annotation tunemill.dev/requested-at.",
        )


def _contents(folder: Path, patterns: list[str]) -> dict[str, str]:
    """Return the sha256 of the files in a folder that match a pattern, by relative path."""
    present = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = matching(present, patterns)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))


def matching(names: Iterable[str], patterns: list[str]) -> list[str]:
    """Return the names that match a pattern, by the rules of huggingface_hub's downloads."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))

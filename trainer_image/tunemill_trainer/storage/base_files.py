"""The contents of a base model's files: recorded by prepare, part of its key, checked by every stage that loads them.

A commit says which files a model has only on a Hub that is trusted. `spec.hub.endpoint` may name any server, which can
serve other files under the same commit.
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
from tunemill_trainer.storage.hub import Hub, ModelCommit

WEIGHTS: Final = "model*.safetensors"
"""Safetensors only; a repository's second copies of the weights have other names (consolidated, original/…)."""
LOADED: Final = ["*.json", WEIGHTS]
"""What train, evaluate and publish load, as patterns."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_THREADS = 8


def digests(hub: Hub, model: ModelCommit, folder: Path, patterns: list[str]) -> dict[str, str]:
    """Return the sha256 of all files of a base model that a stage loads, by name.

    Weights are not downloaded where the Hub names their sha256: what is loaded later has to have it.

    Args:
        hub: serves the files.
        model: the base model.
        folder: holds what prepare has downloaded of it.
        patterns: which files those are.

    Raises:
        StageError: what `hub.hub_errors` knows.
    """
    weights = _matching(model.files, [WEIGHTS])
    with ThreadPoolExecutor(_THREADS) as pool:
        named = dict(zip(weights, pool.map(lambda name: hub.etag(model, name), weights), strict=True))
    unnamed = [name for name, etag in named.items() if not _SHA256.fullmatch(etag)]
    if unnamed:
        hub.download(model.id, model.commit, unnamed)
    found = {name: etag for name, etag in named.items() if name not in unnamed}
    return {**_contents(folder, [*patterns, *unnamed]), **found}


def check(base: BaseModel, folder: Path) -> None:
    """Check that a folder holds the files that prepare has seen, with the same contents, of all that a stage loads.

    Args:
        base: the base model as prepare recorded it; where it recorded no files, nothing is checked.
        folder: the downloaded files. It may be in a cache that other pods write to.

    Raises:
        StageError: BaseModelNotFound.
    """
    if not base.files:
        return
    expected = {name: base.files[name] for name in _matching(base.files, LOADED)}
    found = _contents(folder, LOADED)
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise StageError(
            Reason.BASE_MODEL_NOT_FOUND,
            f"spec.baseModel is {base.id}@{base.revision}, and its {name} is not the file that prepare has seen: "
            f"expected the sha256 {expected.get(name, '(no such file)')}, found {found.get(name, '(no such file)')}",
            "Find out why the Hub (spec.hub.endpoint) or the model cache (spec.compute.modelCache) has other files "
            "now. To use them, request a new run with the annotation tunemill.dev/requested-at.",
        )


def _contents(folder: Path, patterns: list[str]) -> dict[str, str]:
    """Return the sha256 of the files in a folder that match a pattern, by their path in it."""
    present = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = _matching(present, patterns)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))


def _matching(names: Iterable[str], patterns: list[str]) -> list[str]:
    """Return the names that match a pattern, as huggingface_hub decides it when it downloads."""
    return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))

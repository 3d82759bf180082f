"""A base model in a folder of this machine, for `tunemill-trainer run`."""

import hashlib
from pathlib import Path

import yaml
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.checksums import sha256_of

_READ_ONCE = {"config.json", "tokenizer.json", "tokenizer_config.json"}


def files_of(folder: Path) -> frozenset[str]:
    """Return the files of a base model, relative to its folder; hidden ones are none of it.

    Raises:
        StageError: BaseModelNotFound, when there is no such folder or nothing in it.
    """
    found = frozenset(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise StageError(
            Reason.BASE_MODEL_NOT_FOUND,
            f"spec.baseModel.id is {folder}, and there is no such folder with files in it",
            "Set spec.baseModel.id to the folder of a model with safetensors, or to its name on the Hub.",
        )
    return found


def revision_of(folder: Path, names: frozenset[str]) -> str:
    """Return what stands for the contents of a model's small files and the sizes of the others, as a commit does.

    Weights are not read for it: `base_files` takes their digests once, and every later stage checks them.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        path = folder / name
        what = sha256_of(path) if name in _READ_ONCE else str(path.stat().st_size)
        digest.update(f"{name}\0{what}\n".encode())
    return digest.hexdigest()[:40]


def card_of(folder: Path) -> dict[str, object]:
    """Return the metadata block of a model's card; empty where there is no card, or none that can be read."""
    try:
        _, block, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        found = yaml.safe_load(block)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}

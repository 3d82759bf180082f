"""Merges an adapter into its base model, and saves the merged model so that any server can load it."""

import shutil
from pathlib import Path
from typing import Any

_SHARD = "5GB"
"""Maximum shard size: small enough to restart an interrupted upload or download without losing much."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""The files without which servers do not load a multimodal model."""


def merge(model: Any) -> Any:  # noqa: ANN401 - peft ships no types
    """Merge the adapter of a PEFT model into its weights. The PEFT model cannot be used afterwards."""
    # `safe_merge` checks the merged weights for NaN, as a division by zero in an adapter would leave.
    return model.merge_and_unload(safe_merge=True).eval()


def save_whole(model: Any, base: Path, tokenizer: Path, folder: Path) -> None:  # noqa: ANN401
    """Save a full model with its tokenizer and chat template into one self-contained folder.

    Args:
        model: a causal language model without an adapter.
        base: the folder of the base model, for the settings of its processors of images and sound.
        tokenizer: the folder of the prepared tokenizer.
        folder: where to save it.
    """
    model.save_pretrained(folder, max_shard_size=_SHARD)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    for name in _PROCESSORS:
        if (base / name).is_file():
            shutil.copy(base / name, folder)

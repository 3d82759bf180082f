"""Makes one whole model of base and adapter, which any server loads."""

import shutil
from pathlib import Path
from typing import Any

_SHARD = "5GB"
"""The largest file: what the Hub and downloads over shaky lines take well."""


def merge(model: Any) -> Any:  # noqa: ANN401 - peft ships no types
    """Return the model with the adapter's changes in its weights; the adapter is gone afterwards."""
    # The safe way looks for weights that are not numbers, which a division by zero in an adapter would leave.
    return model.merge_and_unload(safe_merge=True).eval()


def save_whole(model: Any, tokenizer: Path, folder: Path) -> None:  # noqa: ANN401
    """Write a whole model with its tokenizer and chat template to a folder that loads without any other.

    Args:
        model: a causal language model without an adapter.
        tokenizer: the folder with the prepared tokenizer.
        folder: where the files go.
    """
    model.save_pretrained(folder, max_shard_size=_SHARD)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)

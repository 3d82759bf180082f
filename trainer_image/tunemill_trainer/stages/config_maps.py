"""The files of ConfigMaps that a manifest refers to: mounted in a pod, beside the manifest in a run on one machine."""

import os
from pathlib import Path

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError

ENV_CONFIG_DIRECTORY = "TUNEMILL_CONFIG_DIR"
"""A folder that holds the files, when they are not where pods have them."""


def read(mounted: str, field: str, when_unreadable: Reason) -> str:
    """Return the text of a file.

    Args:
        mounted: where a pod has it.
        field: of the spec that refers to the ConfigMap, for messages.
        when_unreadable: what a file that is not UTF-8 means.

    Raises:
        StageError: ConfigMapNotFound, or `when_unreadable`.
    """
    path = Path(mounted)
    if folder := os.environ.get(ENV_CONFIG_DIRECTORY):
        path = Path(folder) / path.name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StageError(
            Reason.CONFIG_MAP_NOT_FOUND, f"expected the file of {field} at {path}: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise StageError(when_unreadable, f"the file of {field} is not UTF-8: {error.reason}") from error

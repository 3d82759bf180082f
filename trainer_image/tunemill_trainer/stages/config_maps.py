"""Reads the files of ConfigMaps of the spec. In a pod they are mounted; in a local run they are in a folder."""

import os
from pathlib import Path

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError

ENV_CONFIG_DIRECTORY = "TUNEMILL_CONFIG_DIR"
"""The environment variable with the folder of the files in a local run."""


def read(mounted: str, field: str, when_unreadable: Reason) -> str:
    """Return the text of a file.

    Args:
        mounted: the path of the file in a pod.
        field: the field of the spec that names the ConfigMap, for messages.
        when_unreadable: the failure reason for a file that is not UTF-8.

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

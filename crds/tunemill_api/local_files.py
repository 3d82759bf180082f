"""Files of the machine that `tunemill-trainer run` works on. Pods do not have them: the CRD refuses them."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote

FILE_SCHEME: Final = "file://"

PATTERN: Final = r"file:///.*"
"""An absolute path as a URI, as a regular expression."""

RULE: Final = f"!self.startsWith('{FILE_SCHEME}')"
RULE_MESSAGE: Final = "files of a machine are for `tunemill-trainer run`: a pod does not have them"
"""The CEL rule with which the CRD refuses them."""


def is_local(uri: str) -> bool:
    """Return whether something lies on this machine."""
    return uri.startswith(FILE_SCHEME)


def local_path(uri: str) -> Path:
    """Return the path that a file:// URI stands for."""
    return Path(unquote(uri.removeprefix(FILE_SCHEME)))

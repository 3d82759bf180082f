"""file:// URIs, for local runs with `tunemill run`. The CRD refuses them: pods cannot read such files."""

from pathlib import Path
from typing import Final
from urllib.parse import unquote

FILE_SCHEME: Final = "file://"

PATTERN: Final = r"file:///.*"
"""Regular expression for the URI of an absolute path."""

RULE: Final = f"!self.startsWith('{FILE_SCHEME}')"
RULE_MESSAGE: Final = "file:// URIs work only with `tunemill run`: a pod cannot read the files of a machine"
"""Message of the CEL rule with which the CRD refuses file:// URIs."""


def is_local(uri: str) -> bool:
    """Return whether the URI is a file:// URI."""
    return uri.startswith(FILE_SCHEME)


def local_path(uri: str) -> Path:
    """Return the path of a file:// URI."""
    return Path(unquote(uri.removeprefix(FILE_SCHEME)))

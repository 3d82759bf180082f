"""Removes fields from a status that the cluster's CRD does not have, because it is older than the operator.

Server-side apply rejects the whole status for an unknown field, and lists the fields in its message.
"""

import re
from typing import Any

_NAMED = re.compile(r"\.status((?:\.\w+|\[[^\]]*\])+): field not declared in schema")


def undeclared(message: str) -> list[str]:
    """Return the status fields that the schema lacks, such as stages.job, from the API server's message."""
    return sorted({re.sub(r"\[[^\]]*\]", "", path).removeprefix(".") for path in _NAMED.findall(message)})


def without(status: Any, path: str) -> Any:  # noqa: ANN401 - a part of a status as JSON
    """Return the status without a field. For lists, the field is removed from every item."""
    if isinstance(status, list):
        return [without(item, path) for item in status]
    if not isinstance(status, dict):
        return status
    name, _, rest = path.partition(".")
    if not rest:
        return {key: value for key, value in status.items() if key != name}
    return {key: without(value, rest) if key == name else value for key, value in status.items()}

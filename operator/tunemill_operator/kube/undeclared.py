"""Leaves out of a status what the CRD in the cluster does not have, because it is older than the operator.

Server-side apply refuses the whole status for one field that the schema lacks, and says which; nothing else does.
"""

import re
from typing import Any

_NAMED = re.compile(r"\.status((?:\.\w+|\[[^\]]*\])+): field not declared in schema")


def undeclared(message: str) -> list[str]:
    """Return the fields of the status that the API server's message says are not in the schema, such as stages.job."""
    return sorted({re.sub(r"\[[^\]]*\]", "", path).removeprefix(".") for path in _NAMED.findall(message)})


def without(status: Any, path: str) -> Any:  # noqa: ANN401 - a part of a status as JSON
    """Return the status without a field; of a list, every item without it."""
    if isinstance(status, list):
        return [without(item, path) for item in status]
    if not isinstance(status, dict):
        return status
    name, _, rest = path.partition(".")
    if not rest:
        return {key: value for key, value in status.items() if key != name}
    return {key: without(value, rest) if key == name else value for key, value in status.items()}

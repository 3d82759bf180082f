"""Compares the JSON output of a command with the fields documented in its reference page."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tunemill_trainer.commands.command import Command, JsonField

_TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "null": type(None),
}


def undocumented(command: Command, printed: str) -> list[str]:
    """Return the paths of values that the command does not document, or documents with another type."""
    lines = printed.splitlines() if "per line" in command.json.form else [printed]
    found = [pair for line in lines for pair in _values("", json.loads(line))]
    return sorted({path for path, value in found if not _is_documented(command, path, value)})


def unprinted(command: Command, printed: str) -> set[str]:
    """Return the documented fields that do not occur in one object."""
    paths = [path for path, _ in _values("", json.loads(printed))]
    return {field.path for field in command.json.fields if not any(_reaches(field, path) for path in paths)}


def _values(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value with its path, of which each step begins with a NUL."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _values(f"{path}\0{name}", each)
    if isinstance(value, list):
        for each in value:
            yield from _values(f"{path}\0[]", each)


def _steps(field: JsonField) -> list[str]:
    return ["[^\0]*" if step == "*" else re.escape(step) for step in field.path.replace("[]", ".[]").split(".")]


def _reaches(field: JsonField, path: str) -> bool:
    return re.fullmatch("".join(f"\0{step}" for step in _steps(field)), path) is not None


def _is_documented(command: Command, path: str, value: Any) -> bool:
    for field in command.json.fields:
        kinds, steps = field.type.split(" or "), _steps(field)
        if _reaches(field, path):
            right = isinstance(value, tuple(each for kind in kinds for each in _classes(kind)))
            return right and ("boolean" in kinds or not isinstance(value, bool))
        # What is in an object is documented elsewhere, unless its fields are listed, too.
        whole = "".join(f"\0{step}" for step in steps)
        if "object" in kinds and re.match(f"{whole}\0", path) and not _has_fields(command, field):
            return True
    # What only holds documented fields needs no description.
    return isinstance(value, dict | list) and any(
        re.fullmatch("".join(f"\0{step}" for step in _steps(field)[:depth]), path)
        for field in command.json.fields
        for depth in range(1, len(_steps(field)))
    )


def _classes(kind: str) -> tuple[type, ...]:
    known = _TYPES[kind]
    return known if isinstance(known, tuple) else (known,)


def _has_fields(command: Command, field: JsonField) -> bool:
    return any(each.path.startswith(f"{field.path}.") for each in command.json.fields)

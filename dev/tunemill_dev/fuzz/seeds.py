"""The inputs to mutate: rows in the formats of public data sets, and replies in the formats of serving engines.

The files are in this folder. They also contain the values that mutations insert: markers, texts, names and values.
"""

import json
from importlib import resources
from typing import Any

_FILES = resources.files("tunemill_dev.fuzz")


def _list(name: str) -> tuple[Any, ...]:
    return tuple(json.loads(_FILES.joinpath(name).read_text(encoding="utf-8")))


ROWS: tuple[dict[str, Any], ...] = tuple(
    json.loads(line) for line in _FILES.joinpath("rows.jsonl").read_text(encoding="utf-8").splitlines()
)
REPLIES: tuple[str, ...] = _list("replies.json")
NAMES: tuple[str, ...] = _list("names.json")
VALUES: tuple[Any, ...] = _list("values.json")
TOKENS: tuple[str, ...] = (
    *_list("tokens.json"),
    *("9" * 5000, "[" * 70, "{'a':" * 70, "[" * 1200, '{"a":' * 1200, "(" * 300, "-" * 400, "not " * 200, "a." * 400),
    " " * 3000,
)

"""Texts of strangers made fit to be shown: what a terminal or a reader's eye would obey stands there as an escape.

Names of files, ids of models, cells of data and whatever a foreign image says reach logs, events and the status. There
a line feed forges a line, an escape sequence rewrites a terminal, and a direction mark turns a sentence around.
"""

import json
import unicodedata
from collections.abc import Container
from typing import Any, TypeVar

from pydantic import BaseModel

_OBEYED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control characters, formats such as direction marks, surrogates, line and paragraph ends."""

M = TypeVar("M", bound=BaseModel)


def plain(text: str, keep: Container[str] = ()) -> str:
    """Return the text with escapes, as JSON writes them, for the characters that are obeyed and not seen.

    Args:
        text: any.
        keep: characters that stay all the same.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        json.dumps(letter)[1:-1] if unicodedata.category(letter) in _OBEYED and letter not in keep else letter
        for letter in text
    )


def parsed(model: type[M], text: str) -> M:
    """Return what JSON from a pod says, with every text in it plain.

    Raises:
        pydantic.ValidationError: it is not JSON, or not this.
    """
    found = model.model_validate_json(text)
    if "\\" not in text and plain(text) == text:
        return found
    return model.model_validate(_plain_values(found.model_dump()))


def _plain_values(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_plain_values(item) for item in value]
    return {name: _plain_values(item) for name, item in value.items()} if isinstance(value, dict) else value

"""Escapes control and format characters in untrusted texts before they are shown.

File names, model IDs, cells of the data and the output of foreign images appear in logs, events and the status. There,
a line feed can forge a line, an escape sequence can control a terminal, and a bidirectional mark can reorder a
sentence.
"""

import json
import unicodedata
from collections.abc import Container
from typing import Any, TypeVar

from pydantic import BaseModel

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of control characters, format characters, surrogates, line and paragraph separators."""

M = TypeVar("M", bound=BaseModel)


def plain(text: str, keep: Container[str] = ()) -> str:
    """Return the text with control and format characters replaced by JSON escapes.

    Args:
        text: any text.
        keep: characters that are not replaced.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        json.dumps(char)[1:-1] if unicodedata.category(char) in _ESCAPED_CATEGORIES and char not in keep else char
        for char in text
    )


def parsed(model: type[M], text: str) -> M:
    """Parse JSON from a pod into a model and escape all texts in it with `plain`.

    Raises:
        pydantic.ValidationError: the text is not valid JSON, or does not match the model.
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

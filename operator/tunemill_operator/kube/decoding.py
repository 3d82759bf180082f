"""Decodes JSON from the API server, so that one unreadable object does not affect others.

Users control the nesting and the content of objects. pydantic's parser rejects JSON that is nested deeper than 200
levels, and with it a whole page of objects. Here, values that are nested too deeply become null, and objects that are
invalid in another way are removed. A null in the wrong place is found when the object is validated.
"""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

log = logging.getLogger(__name__)

DEEPEST = 120
"""Maximum nesting depth. A Job has about 20 levels, and a list adds 2."""
_DEEP_FROM = 190
"""A line with fewer brackets than this can be decoded by every parser."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


def decoded(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Return the JSON value. For a list of objects, return those that can be decoded.

    Raises:
        ValueError: the text is not JSON, for example the error page of a proxy.
    """
    try:
        return from_json(text)
    except ValueError:
        pass
    text = shallow(text)
    try:
        return _parsed(text)
    except ValueError:
        return _decoded_list(text)


def decodable_line(line: bytes) -> bytes:
    """Return a line of a watch in a form that every parser accepts. Empty if there is none."""
    if line.count(b"{") + line.count(b"[") < _DEEP_FROM:
        return line
    try:
        from_json(line)
    except ValueError:
        line = shallow(line)
        try:
            _parsed(line)
        except ValueError as error:
            log.warning("ignoring an unreadable watch event: %s", error)
            return b""
    return line


def shallow(text: bytes) -> bytes:
    """Return the JSON text with null for all values that are nested deeper than DEEPEST."""
    depth, start, parts = 0, 0, list[bytes]()
    for token in _TOKEN.finditer(text):
        match text[token.start()]:
            case 0x5B | 0x7B:  # [ {
                depth += 1
                if depth == DEEPEST + 1:
                    parts += [text[start : token.start()], b"null"]
            case 0x5D | 0x7D:  # ] }
                if depth == DEEPEST + 1:
                    start = token.end()
                depth -= 1
    return b"".join([*parts, text[start:]]) if parts and depth <= DEEPEST else text


def _parsed(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Return the JSON value. Python's own parser also accepts unpaired surrogates, which pydantic's does not."""
    try:
        return from_json(text)
    except ValueError:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error


def _decoded_list(text: bytes) -> Any:  # noqa: ANN401 - a list of objects
    """Return the objects of the list that can be decoded.

    Raises:
        ValueError: the text is not a list of objects.
    """
    spans = list(_items(text))
    if not spans:
        raise ValueError("neither JSON nor a list of objects")
    page = _parsed(b"".join([text[: spans[0][0]], text[spans[-1][1] :]]))
    found = []
    for start, end in spans:
        try:
            found.append(_parsed(text[start:end]))
        except ValueError as error:
            log.warning("ignoring an unreadable object of a list: %s", error)
    page["items"] = found
    return page


def _items(text: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each object in the list's items."""
    depth, name, inside, start = 0, b"", False, 0
    for token in _TOKEN.finditer(text):
        match text[token.start()]:
            case 0x5B | 0x7B:
                depth += 1
                if depth == 2:
                    inside = name == b'"items"' and text[token.start()] == 0x5B
                elif depth == 3:
                    start = token.start()
            case 0x5D | 0x7D:
                if depth == 3 and inside:
                    yield start, token.end()
                depth -= 1
            case _ if depth == 1:
                name = token.group()

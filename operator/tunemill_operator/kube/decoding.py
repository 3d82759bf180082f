"""JSON from the API server, decoded so that one object which cannot be read costs no other object.

Users decide how deep and how odd an object is. pydantic's parser refuses JSON that is nested deeper than 200 levels,
and with it a whole page of objects. Here what is too deep becomes null, and an object that is broken in another way is
left out. What is null in the wrong place is then found when the object is validated.
"""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

log = logging.getLogger(__name__)

DEEPEST = 120
"""Levels of nesting that are kept. A Job has about 20, and a list adds 2."""
_DEEP_FROM = 190
"""A line with fewer brackets than this can be parsed by every parser, however they are nested."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


def decoded(text: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Return the JSON value; of a list of objects, those that can be decoded.

    Raises:
        ValueError: when it is no JSON at all, such as a proxy's error page.
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
    """Return a line of a watch as every parser can take it; empty when none can."""
    if line.count(b"{") + line.count(b"[") < _DEEP_FROM:
        return line
    try:
        from_json(line)
    except ValueError:
        line = shallow(line)
        try:
            _parsed(line)
        except ValueError as error:
            log.warning("an event of a watch cannot be read and is left out: %s", error)
            return b""
    return line


def shallow(text: bytes) -> bytes:
    """Return the JSON text with null for everything that is nested deeper than DEEPEST."""
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
    """Return the JSON value. Python's own parser also takes half a surrogate pair, which pydantic's does not."""
    try:
        return from_json(text)
    except ValueError:
        try:
            return json.loads(text)
        except RecursionError as error:
            raise ValueError("nested too deep") from error


def _decoded_list(text: bytes) -> Any:  # noqa: ANN401 - a list of objects
    """Return the list of the objects that can be decoded.

    Raises:
        ValueError: when it is no list of objects.
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
            log.warning("an object of a list cannot be read and is left out: %s", error)
    page["items"] = found
    return page


def _items(text: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each object of the list's items begins and ends."""
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

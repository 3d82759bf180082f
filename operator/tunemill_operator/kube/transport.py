"""How answers of the API server are taken in, by the operator's own client and by kopf's alike.

- A list is read in pages that are bounded by bytes, not only by the number of objects: a page that is too large is
  given up while it arrives and asked for again with fewer objects. The next lists of that kind begin with as many.
- What cannot be decoded is left out (`decoding`) before kopf sees it: an exception there ends the watch of all objects.
"""

import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from tunemill_operator.kube.decoding import decodable_line, decoded

PAGE = 200
"""Objects per page of a list: more would only take memory, tens of kilobytes each until they are looked through."""
PAGE_BYTES = 4 * 1024 * 1024
"""Bytes per page of a list. JSON takes up to twelve times as much memory once decoded. One object may be larger."""
_CHUNK_BYTES = 256 * 1024


class Response(ClientResponse):
    """An answer of which no content raises an exception that only one object is the reason for."""

    async def start(self, connection: Any) -> ClientResponse:  # noqa: ANN401 - aiohttp's private type
        """Take in the headers."""
        await super().start(connection)
        if self.method == "GET" and self.status == 200 and self.url.query.get("watch"):
            self.content: Any = _Lines(self.content)
        return self

    async def json(self, **_: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Return the decoded content; what is no JSON is an empty object."""
        try:
            return decoded(await self.read())
        except ValueError:
            return {}

    async def load(self, limit: float) -> int | None:
        """Read the content and return its bytes; stop and return None as soon as they are more than the limit."""
        chunks, size = list[bytes](), 0
        async for chunk in self.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                return None
            chunks.append(chunk)
        self._body = b"".join(chunks)
        return size


class _Lines:
    """The content of a watch, an event a line."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the content's own
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield whole lines, those that can be decoded."""
        rest: list[bytes] = []
        async for chunk in self._content.iter_chunked(size):
            *lines, last = chunk.split(b"\n")
            if lines:
                lines[0] = b"".join([*rest, lines[0]])
                rest = []
                for line in lines:
                    if line and (good := decodable_line(line)):
                        yield good + b"\n"
            rest.append(last)
        if (line := b"".join(rest)) and (good := decodable_line(line)):
            yield good + b"\n"


class Pages:
    """Makes the pages of lists as small as they have to be."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        """By path and selector, the objects of the last page that fitted or would have."""

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Make the request; that of a page again and again until the page fits."""
        query = request.url.query
        if request.method != "GET" or "limit" not in query:
            return await handler(request)
        kind, most = f"{request.url.path}?{query.get('labelSelector', '')}", int(query["limit"])
        limit = min(most, self._limits.get(kind, most))
        while True:
            request.url = request.url.update_query(limit=limit)
            response = await handler(request)
            if not isinstance(response, Response) or response.status != 200:
                return response
            size = await response.load(PAGE_BYTES if limit > 1 else math.inf)
            if size is not None:
                break
            response.close()
            limit = max(1, limit // 4)
        # As many objects of this size as fit; with a bit of room, as a page that is given up is wasted.
        fitting = int(limit * min(4.0, 0.9 * PAGE_BYTES / max(size, 1)))
        self._limits[kind] = max(1, min(most, fitting))
        return response


def session_options(pages: Pages) -> dict[str, Any]:
    """Return the arguments of aiohttp's session that have answers taken in like this."""
    return {"response_class": Response, "middlewares": (pages,), "trust_env": False}

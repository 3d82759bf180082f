"""Limits on answers of the API server, for the operator's client and for kopf.

- Pages of a list are limited in bytes, not only in the number of objects. A page that is too large is cancelled and
  requested again with fewer objects. The next lists of that kind start with this number.
- Objects that cannot be decoded are removed (`decoding`) before kopf sees them: an exception there ends the watch.
"""

import math
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

from tunemill_operator.kube.decoding import decodable_line, decoded

PAGE = 200
"""Maximum number of objects per page of a list. Each takes tens of kilobytes until it is processed."""
PAGE_BYTES = 4 * 1024 * 1024
"""Maximum number of bytes per page of a list. Decoded JSON takes up to twelve times as much memory. A single object may
be larger."""
_CHUNK_BYTES = 256 * 1024


class Response(ClientResponse):
    """A response that raises no exception because of the content of a single object."""

    async def start(self, connection: Any) -> ClientResponse:  # noqa: ANN401 - aiohttp's private type
        """Read the headers."""
        await super().start(connection)
        if self.method == "GET" and self.status == 200 and self.url.query.get("watch"):
            self.content: Any = _Lines(self.content)
        return self

    async def json(self, **_: Any) -> Any:  # noqa: ANN401 - any JSON value
        """Return the decoded content. Invalid JSON becomes an empty object."""
        try:
            return decoded(await self.read())
        except ValueError:
            return {}

    async def load(self, limit: float) -> int | None:
        """Read the content and return its size in bytes, or None if it is larger than the limit."""
        chunks, size = list[bytes](), 0
        async for chunk in self.content.iter_chunked(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                return None
            chunks.append(chunk)
        self._body = b"".join(chunks)
        return size


class _Lines:
    """The content of a watch response, with one event per line."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - all else is the content's own
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield whole lines that can be decoded."""
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
    """Reduces the size of pages as needed."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        """By path and selector, the objects of the last page that fitted or would have."""

    async def __call__(self, request: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        """Make the request. A list page is requested again with fewer objects until it fits."""
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
        # As many objects of this size as fit, with a margin, because a cancelled page is wasted.
        fitting = int(limit * min(4.0, 0.9 * PAGE_BYTES / max(size, 1)))
        self._limits[kind] = max(1, min(most, fitting))
        return response


def session_options(pages: Pages) -> dict[str, Any]:
    """Return the arguments of an aiohttp session with these limits."""
    return {"response_class": Response, "middlewares": (pages,), "trust_env": False}

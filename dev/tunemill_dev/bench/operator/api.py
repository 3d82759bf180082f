"""A client for load tests: many concurrent requests, and watches that record when objects were seen."""

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import yaml

Json = dict[str, Any]
CONNECTIONS = 32
_LINE_BYTES = 1 << 22
"""The maximum length of a line in a watch, which is one object."""


class Api:
    """A JSON client. A rejected request raises RuntimeError with the API server's message."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, kubeconfig: Path) -> AsyncIterator["Api"]:
        """Connect as the user of a self-contained kubeconfig."""
        server, context = _access(kubeconfig)
        connector = aiohttp.TCPConnector(ssl=context, limit=CONNECTIONS)
        async with aiohttp.ClientSession(
            server, connector=connector, read_bufsize=_LINE_BYTES, timeout=aiohttp.ClientTimeout(total=None)
        ) as session:
            yield cls(session)

    async def request(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Json:
        """Make a request."""
        payload = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=payload, headers={"Content-Type": kind}) as answer:
            text = await answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text.decode(errors='replace')[:500]}")
        decoded: Json = json.loads(text)
        return decoded

    async def served(self, path: str, seconds: float = 60) -> None:
        """Wait until the API server serves a path. TimeoutError if it does not."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.request("GET", f"{path}?limit=1")
                    return
                except RuntimeError:  # a new CRD is not served at once
                    await asyncio.sleep(0.1)

    async def watch(self, path: str, begun: asyncio.Event) -> AsyncIterator[Json]:
        """Yield the events of a collection from now on, without end. `begun` is set when the watch has started."""
        version = (await self.request("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        async with self._session.get(path, params={"watch": "true", "resourceVersion": version}) as stream:
            begun.set()
            async for line in stream.content:
                yield json.loads(line)


class Seen:
    """The times at which objects of a collection were first seen, by the names that `name_of` returns."""

    def __init__(self, api: Api, path: str, *, by_owner: bool = False) -> None:
        self.at: dict[str, float] = {}
        self._api = api
        self._path = path
        self._by_owner = by_owner
        self._changed = asyncio.Event()
        self._begun = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator["Seen"]:
        """Watch inside the context."""
        task = asyncio.create_task(self._watch())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ready(self) -> None:
        """Wait until the watch has started."""
        await self._begun.wait()

    async def all_of(self, names: set[str], seconds: float) -> None:
        """Wait until all of these were seen. TimeoutError if they are not."""
        async with asyncio.timeout(seconds):
            while not names <= self.at.keys():
                self._changed.clear()
                await self._changed.wait()

    async def _watch(self) -> None:
        async for event in self._api.watch(self._path, self._begun):
            if event["type"] != "ADDED":
                continue
            metadata = event["object"]["metadata"]
            name = metadata["ownerReferences"][0]["name"] if self._by_owner else metadata["name"]
            self.at.setdefault(name, time.perf_counter())
            self._changed.set()


def _access(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    with TemporaryDirectory() as folder:
        pair = Path(folder, "pair.pem")
        pair.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(pair)
    return cluster["server"], context

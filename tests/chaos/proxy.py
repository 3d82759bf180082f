"""A proxy between an operator and the API server that injects faults of networks, proxies and busy API servers."""

import asyncio
import base64
import json
import random
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

SLOW_SECONDS = 2.0
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Faults:
    """The probability of each fault, as a share of the requests or of the events."""

    too_many: float = 0.0
    """429 with Retry-After, before the request reaches the API server."""
    broken: float = 0.0
    """500, before it reaches it."""
    slow: float = 0.0
    """The answer comes late."""
    lost: float = 0.0
    """The request is carried out, and its answer is lost."""
    twice: float = 0.0
    """An event of a watch comes twice."""
    swapped: float = 0.0
    """An event of a watch comes after the next one."""
    deaf: bool = False
    """Watches stay open, and nothing comes any more; new ones too."""


@dataclass
class Proxy:
    """An HTTP server on loopback that forwards to the API server with the credentials of a kubeconfig."""

    upstream: Path
    """A self-contained kubeconfig."""
    kubeconfig: Path
    """Where the kubeconfig of the proxy is written."""
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    done: Counter[str] = field(default_factory=Counter)
    """How often each fault happened."""
    _watches: set[asyncio.Task[Any]] = field(default_factory=set)

    def start(self) -> None:
        """Start serving, in a separate thread."""
        self._draw = random.Random(self.seed)
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="proxy", daemon=True)
        self._thread.start()
        assert ready.wait(30), "the proxy does not start"

    def stop(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=10)

    def watches(self) -> int:
        """Return the number of open watches."""
        return len(self._watches)

    def cut_watches(self) -> None:
        """Close every open watch."""

        def cut() -> None:
            for task in list(self._watches):
                task.cancel()
                self.done["cut"] += 1

        self._loop.call_soon_threadsafe(cut)

    def _run(self, ready: threading.Event) -> None:
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server, context = _access(self.upstream)
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        async with aiohttp.ClientSession(
            server, connector=connector, timeout=aiohttp.ClientTimeout(total=None), read_bufsize=1 << 22
        ) as session:
            self._session = session
            app = web.Application(client_max_size=1 << 24)
            app.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._write_kubeconfig(runner.addresses[0][1])
            ready.set()
            await self._stopping.wait()
            await runner.cleanup()

    def _write_kubeconfig(self, port: int) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "anybody", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "anybody"}}],
            "current-context": "proxy",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _happens(self, fault: str) -> bool:
        happens = self._draw.random() < getattr(self.faults, fault)
        self.done[fault] += happens
        return happens

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request)
        if self._happens("too_many"):
            return _status(429, "TooManyRequests", {"Retry-After": "1"})
        if self._happens("broken"):
            return _status(500, "InternalError", {})
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            async with self._session.request(
                request.method, str(request.rel_url), data=await request.read() or None, headers=headers
            ) as answer:
                body = await answer.read()
        except aiohttp.ClientError:
            return _status(503, "ServiceUnavailable", {})
        if self._happens("lost"):
            assert request.transport
            request.transport.abort()
            return web.Response(status=502)
        if self._happens("slow"):
            await asyncio.sleep(SLOW_SECONDS)
        return web.Response(status=answer.status, body=body, headers={"Content-Type": answer.content_type})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        assert task
        self._watches.add(task)
        try:
            async for line in self._events(str(request.rel_url)):
                while self.faults.deaf:  # noqa: ASYNC110 - the connection is there, and dead, until a test says so
                    await asyncio.sleep(0.1)
                await response.write(line)
        except (aiohttp.ClientError, ConnectionError):
            pass  # the watch ends, as it does when an API server goes
        finally:
            self._watches.discard(task)
        return response

    async def _events(self, url: str) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, some twice, some out of order."""
        held: bytes | None = None
        async with self._session.get(url) as stream:
            async for line in stream.content:
                if held is None and self._happens("swapped"):
                    held = line
                    continue
                yield line
                if self._happens("twice"):
                    yield line
                if held is not None:
                    yield held
                    held = None


def _status(code: int, reason: str, headers: dict[str, str]) -> web.Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return web.Response(status=code, text=json.dumps(body), content_type="application/json", headers=headers)


def _access(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    pair = kubeconfig.with_suffix(".pair.pem")
    pair.write_bytes(base64.b64decode(user["client-certificate-data"]) + base64.b64decode(user["client-key-data"]))
    context.load_cert_chain(pair)
    return cluster["server"], context

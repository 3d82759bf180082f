"""The Hub server in a thread of this process, for tests."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.context import Hub
from tunemill_dev.hub.faults import Fault, Request
from tunemill_dev.hub.server import make_app
from tunemill_dev.hub.store import Store


@dataclass(frozen=True)
class LocalHub:
    """A running server."""

    url: str
    hub: Hub

    @property
    def requests(self) -> list[Request]:
        """Return the recorded requests, oldest first."""
        return list(self.hub.faults.requests)

    def fail(self, fault: Fault) -> None:
        """Make the next matching requests fail."""
        self.hub.faults.waiting.append(fault)


@contextmanager
def local_hub(
    accounts: Accounts, *, data: Path | None = None, admin_token: str = "", multipart_bytes: int = 64 << 20
) -> Iterator[LocalHub]:
    """Serve on a free loopback port until the block ends. `data`, if given, is kept afterwards.

    with local_hub(accounts) as hub:
        HfApi(endpoint=hub.url, token="…").create_repo("acme/support-tools")
    """
    with tempfile.TemporaryDirectory() as scratch:
        hub = Hub(Store(data or Path(scratch)), lambda: accounts, admin_token, multipart_bytes)
        loop = asyncio.new_event_loop()
        runner = web.AppRunner(make_app(hub), access_log=None, shutdown_timeout=1)

        async def start() -> int:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            return int(runner.addresses[0][1])

        thread = threading.Thread(target=loop.run_forever, name="local-hub", daemon=True)
        thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=30)
            yield LocalHub(f"http://127.0.0.1:{port}", hub)
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

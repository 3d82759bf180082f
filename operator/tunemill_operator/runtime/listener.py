"""Serves an HTTP application to the whole cluster with limits on connections.

A TLS connection takes about 300 KB from the start, before the client is known, because asyncio allocates its buffers
immediately. Therefore connections are counted when they are accepted, and TLS starts when a whole ClientHello has
arrived:

- One address may have CONNECTIONS_PER_CLIENT connections. Further ones are closed immediately.
- All addresses together may have CONNECTIONS connections. For another one, the oldest connection of the address with
  the most connections is closed. If many connections have not sent anything yet, the oldest of these is closed.
- A TLS handshake, the headers of a request and an idle connection have timeouts of a few seconds. The application
  limits the body.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final

from aiohttp import web

log = logging.getLogger(__name__)

CONNECTIONS: Final = 256
"""Maximum number of open connections: about 75 MB with TLS. A stage opens one for milliseconds per report."""
CONNECTIONS_PER_CLIENT: Final = 32
"""Maximum number of open connections of one address. Pods may share an address if the cluster network hides theirs."""
SILENT_SHARE: Final = 4
"""At most one in this many connections may not have sent anything yet."""
HANDSHAKE_SECONDS: Final = 5.0
HELLO_AGAIN_SECONDS: Final = 0.05
"""Interval in seconds between checks for the rest of an incomplete ClientHello."""
SHUTDOWN_SECONDS: Final = 2.0
"""Maximum time in seconds for a client to confirm the end of a TLS connection."""
HEADER_SECONDS: Final = 10.0
"""Maximum time in seconds for the headers of a request, and for an idle connection."""
_HANDSHAKE: Final = 0x16
"""Type of the first TLS record of a connection."""
_RECORD_BYTES: Final = 16 * 1024
_BACKLOG: Final = 1024
_HTTP: Final = {
    "keepalive_timeout": HEADER_SECONDS,
    "lingering_time": 0.0,  # do not wait for the rest of a rejected body
    "max_line_size": 4096,
    "max_field_size": 8190,  # a token of a service account has 1 to 2 KB
    "max_headers": 64,
    "read_bufsize": 16 * 1024,
    "auto_decompress": False,
}


@contextlib.asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve the application while the context lasts. Yield the port.

    Raises:
        OSError: the port is in use.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **_HTTP)  # type: ignore[arg-type]
    await runner.setup()
    try:
        if runner.server is None:
            raise RuntimeError("the application was not set up")
        with socket.create_server((host, port), backlog=_BACKLOG) as listener:
            listener.setblocking(False)
            connections = Connections(runner.server, context)
            accepting = asyncio.create_task(connections.accept(listener), name="listener")
            try:
                yield int(listener.getsockname()[1])
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                connections.close()
    finally:
        await runner.cleanup()


class Connections:
    """The open connections of a server."""

    def __init__(self, server: web.Server, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._open: dict[str, dict[_Connection, None]] = defaultdict(dict)
        self._silent: dict[_Connection, None] = {}
        """Connections whose TLS handshake has not started, oldest first."""
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._count

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listener)
            except OSError as error:  # for example, no file descriptor is left
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._admit(accepted, str(address[0]))

    def close(self) -> None:
        """Close all connections."""
        for task in self._tasks:
            task.cancel()
        for of_client in [*self._open.values()]:
            for connection in [*of_client]:
                connection.close()

    def _admit(self, accepted: socket.socket, client: str) -> None:
        if len(self._open[client]) >= CONNECTIONS_PER_CLIENT:
            accepted.close()
            return
        connection = _Connection(self, self._server, accepted, client)
        self._open[client][connection] = None
        self._count += 1
        if self._context is None:
            self._begin(connection, accepted)
        else:
            self._silent[connection] = None
            connection.deadline = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, connection.close)
            self._wait_for_hello(connection, accepted)
        if self._count > CONNECTIONS:
            many_silent = len(self._silent) > CONNECTIONS // SILENT_SHARE
            oldest = self._silent if many_silent else max(self._open.values(), key=len)
            next(iter(oldest)).close()

    def _wait_for_hello(self, connection: "_Connection", accepted: socket.socket) -> None:
        """Start TLS once the client's first message has arrived. Until then, a connection takes little memory."""
        if connection.closed:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(accepted)
        try:
            hello = accepted.recv(_RECORD_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            loop.add_reader(accepted, self._wait_for_hello, connection, accepted)
            return
        except OSError:
            hello = b""
        if not hello or hello[0] != _HANDSHAKE:
            connection.close()
        elif len(hello) >= 5 and len(hello) >= min(_RECORD_BYTES, 5 + int.from_bytes(hello[3:5], "big")):
            self._begin(connection, accepted)
        else:
            loop.call_later(HELLO_AGAIN_SECONDS, self._wait_for_hello, connection, accepted)

    def _begin(self, connection: "_Connection", accepted: socket.socket) -> None:
        if connection.deadline:
            connection.deadline.cancel()
        connection.begun = True
        self._silent.pop(connection, None)
        task = asyncio.create_task(self._take_into_use(connection, accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_into_use(self, connection: "_Connection", accepted: socket.socket) -> None:
        tls = self._context is not None
        if connection.closed:  # closed in favour of a later one
            accepted.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls else None,
            )
        except (OSError, asyncio.CancelledError) as error:  # the handshake failed or took too long, or it was closed
            # Break the reference cycle of error and future, which would keep the connection's buffers in memory.
            error.__traceback__ = None
            connection.close()

    def forget(self, connection: "_Connection") -> None:
        """Remove a closed connection."""
        self._silent.pop(connection, None)
        of_client = self._open[connection.client]
        if connection in of_client:
            del of_client[connection]
            self._count -= 1
        if not of_client:
            del self._open[connection.client]


class _Connection(asyncio.Protocol):
    """A connection. It is passed to aiohttp after its handshake."""

    def __init__(self, connections: Connections, server: web.Server, accepted: socket.socket, client: str) -> None:
        self.client = client
        self.closed = False
        self.begun = False
        """Whether asyncio owns the socket, and closes it."""
        self.deadline: asyncio.TimerHandle | None = None
        self._connections = connections
        self._server = server
        self._protocol: asyncio.Protocol | None = None
        self._socket: socket.socket | None = accepted
        self._transport: asyncio.BaseTransport | None = None

    def close(self) -> None:
        """Close the connection immediately."""
        self.closed = True
        if self.deadline:
            self.deadline.cancel()
        if isinstance(self._transport, asyncio.Transport):
            self._transport.abort()
        elif self._socket is not None and self.begun:  # during the handshake, whose transport is not accessible
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        elif self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._socket = None
        self._connections.forget(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pass the connection to aiohttp after the handshake."""
        self._transport, self._socket = transport, None
        if self.closed and isinstance(transport, asyncio.Transport):
            transport.abort()
            return
        self._protocol = self._server()
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass the data to aiohttp."""
        if self._protocol:
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass the end of the stream to aiohttp."""
        return self._protocol.eof_received() if self._protocol else None

    def pause_writing(self) -> None:
        """Pass on that the client does not read."""
        if self._protocol:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client reads again."""
        if self._protocol:
            self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection."""
        self.closed = True
        self._connections.forget(self)
        if self._protocol:
            self._protocol.connection_lost(exc)
        self._protocol = self._transport = None

"""An S3 server that fails at chosen requests."""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from moto.server import DomainDispatcherApplication, create_backend_app
from trainer.storage.buckets import Bucket
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.credentials import S3Credentials
from werkzeug.serving import make_server

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


class Fault(Enum):
    """What goes wrong; refusals with their status and S3's code."""

    SLOW_DOWN = ("503 Slow Down", "SlowDown")
    INTERNAL = ("500 Internal Server Error", "InternalError")
    EXPIRED = ("400 Bad Request", "ExpiredToken")
    RESET = ("", "the connection ends without an answer")
    LOST = ("", "the server does what it is asked, and its answer is lost")
    TRUNCATED = ("", "the answer's body breaks off in its middle")


@dataclass
class Script:
    """Which calls fail, and which calls there were.

    Attributes:
        fault: what goes wrong, if anything.
        after: so many calls go well before.
        once: whether a call that is made again goes well; else nothing does any more.
        calls: method, path and range of all calls.
    """

    fault: Fault | None = None
    after: int = 0
    once: bool = False
    calls: list[str] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def due(self, call: str) -> Fault | None:
        """Record a request, and return its fault."""
        with self._lock:
            due = len(self.calls) >= self.after and not (self.once and call in self.calls)
            self.calls.append(call)
        return self.fault if due else None


@dataclass
class FaultyServer:
    """An S3 server with a script of faults."""

    url: str
    client: "S3Client"
    script: Script = field(default_factory=Script)

    def bucket(self) -> Bucket:
        """Return a new, empty bucket; creating it is not in the script."""
        self.script = Script()
        name = f"team-{uuid4().hex[:8]}"
        self.client.create_bucket(Bucket=name)
        return Bucket(self.url, name, self.client)


@contextmanager
def a_faulty_server() -> Iterator[FaultyServer]:
    """Serve S3 until the block ends."""
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = [environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"]]
        # A range without an end continues an earlier request.
        asked += [part for part in [environ.get("HTTP_RANGE", "")] if part and not part.endswith("-")]
        fault = faulty.script.due(" ".join(asked))
        if fault is None:
            return moto(environ, start_response)
        # What is left unread would be taken for the next request of the connection.
        if fault is not Fault.LOST and fault is not Fault.TRUNCATED:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code = fault.value
        if status:
            body = f"<Error><Code>{code}</Code><Message>as the script says</Message></Error>".encode()
            start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body if environ["REQUEST_METHOD"] != "HEAD" else b""]
        if fault is Fault.TRUNCATED:
            return _half(moto(environ, start_response), environ["werkzeug.socket"])
        if fault is Fault.LOST:
            list(moto(environ, lambda *_: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    server = make_server("127.0.0.1", 0, app, threaded=True)
    url = f"http://127.0.0.1:{server.server_port}"
    faulty = FaultyServer(url, s3.client(url, "us-east-1", S3Credentials("key", "secret")))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()


def _half(body: Iterable[bytes], connection: socket.socket) -> Iterator[bytes]:
    whole = b"".join(body)
    yield whole[: len(whole) // 2]
    connection.shutdown(socket.SHUT_RDWR)

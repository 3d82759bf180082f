"""S3 servers with different support of conditional writes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from trainer.storage.buckets import Bucket, new_bucket
from werkzeug.serving import make_server

HEADER = "HTTP_IF_NONE_MATCH"
_ERROR = "<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"


@contextmanager
def a_store(refusal: Callable[[], tuple[str, str] | None]) -> Iterator[Bucket]:
    """Serve an empty bucket until the block ends.

    Args:
        refusal: is asked at each conditional write; returns the status and S3's code to answer with. None: the server
            writes and takes no notice of the condition.
    """
    moto = DomainDispatcherApplication(create_backend_app)

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "PUT" and HEADER in environ:
            refused = refusal()
            if refused:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(refused[0], [("Content-Type", "application/xml")])
                return [_ERROR.format(code=refused[1]).encode()]
            del environ[HEADER]
        answer: Iterable[bytes] = moto(environ, start_response)
        return answer

    server = make_server("127.0.0.1", 0, serve, threaded=True)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield new_bucket(server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

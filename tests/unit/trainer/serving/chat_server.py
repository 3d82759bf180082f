"""An OpenAI-compatible server in the test process, whose replies the test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass
class ChatServer:
    """A running server.

    Attributes:
        url: the base URL.
        requests: the bodies of all requests, in order.
        keys: their Authorization headers.
    """

    url: str
    requests: list[Json] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def completion(text: str = "", calls: list[tuple[str, str]] | None = None, finish: str = "", **more: Any) -> Json:
    """A reply with these calls, each a name and arguments as text."""
    message: Json = {"role": "assistant", "content": text or None, **more}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(calls)
        ]
    finish = finish or ("tool_calls" if calls else "stop")
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


@contextmanager
def a_chat_server(
    answer: Callable[[Json], Json | tuple[int, Json] | list[Json]], models: tuple[str, ...] = ("tuned",)
) -> Iterator[ChatServer]:
    """Run a server. `answer` gets a request and returns a reply, a status with an error, or the parts of a stream."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            listed = [{"id": name, "object": "model", "created": 1, "owned_by": "me"} for name in models]
            self._send(200, json.dumps({"object": "list", "data": listed}))

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            running.requests.append(request)
            running.keys.append(self.headers.get("Authorization", ""))
            found = answer(request)
            if isinstance(found, list):
                text = "".join(f"data: {json.dumps(part)}\n\n" for part in found) + "data: [DONE]\n\n"
                self._send(200, text, "text/event-stream")
                return
            status, body = found if isinstance(found, tuple) else (200, found)
            self._send(status, json.dumps(body))

        def _send(self, status: int, text: str, kind: str = "application/json") -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running = ChatServer(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

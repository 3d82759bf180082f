"""kubectl for one cluster, as the demo and the end-to-end tests use it."""

import base64
import codecs
import json
import logging
import os
import re
import selectors
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Object = dict[str, Any]
"""A Kubernetes object in its API representation."""

_log = logging.getLogger(__name__)
_FORWARDED = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")
_FORWARD_SECONDS = 20.0
_READ_BYTES = 1 << 16


class CommandError(Exception):
    """A command failed. The message contains the command and the end of its output."""


def run(command: tuple[str, ...], stdin: str = "", *, secret: bool = False) -> str:
    """Run a command, log it, and return its output. The input, and the output with `secret`, are not logged.

    Raises:
        CommandError: the command failed or does not exist.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CommandError(f"{command[0]} is required but not in PATH. Install it") from None
    _log.info("%s → %s\n%s%s", " ".join(command), done.returncode, "" if secret else done.stdout, done.stderr)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandError(f"`{Path(command[0]).name} {' '.join(command[1:])}` failed: {said[-2000:]}")
    return done.stdout


@dataclass(frozen=True)
class Kubectl:
    """kubectl for one cluster. It uses kubectl's own configuration, so that every kind of login works."""

    program: str
    options: tuple[str, ...]
    """Selects the cluster: `--kubeconfig PATH` or `--context NAME`."""

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run `kubectl ARGUMENTS`. CommandError if it fails."""
        return run((self.program, *self.options, *arguments), stdin)

    def apply(self, *objects: Object) -> None:
        """Apply the objects. CommandError with the API server's message if it rejects one."""
        self("apply", "--filename", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def get(self, kind: str, name: str, namespace: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        found = self("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        return json.loads(found) if found.strip() else None

    def secret(self, name: str, namespace: str) -> dict[str, str] | None:
        """Return the values of a Secret, or None if it does not exist."""
        question = ("get", "secret", name, "--namespace", namespace, "--ignore-not-found", "--output", "json")
        found = run((self.program, *self.options, *question), secret=True)
        if not found.strip():
            return None
        return {key: base64.b64decode(value).decode() for key, value in json.loads(found)["data"].items()}

    def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """Return the objects of a kind in a namespace that match a label selector."""
        found = self("get", kind, "--namespace", namespace, "--selector", selector, "--output", "json")
        items: list[Object] = json.loads(found)["items"]
        return items

    def watch(self, kind: str, name: str, namespace: str, tick: float = 1.0) -> Generator[Object]:
        """Yield the object now, after each change, and after `tick` seconds without a change, without end."""
        arguments = ("get", kind, name, "--namespace", namespace, "--output", "json", "--watch")
        latest: Object | None = None
        while True:
            with _reading((self.program, *self.options, *arguments)) as chunks:
                text = ""
                for chunk in chunks(tick):
                    text += chunk
                    found, text = documents(text)
                    latest = found[-1] if found else latest
                    if latest is not None:
                        yield latest
            # The API server ends every watch after a while, or it may be restarting.
            time.sleep(tick)
            if latest is not None:
                yield latest

    @contextmanager
    def forward(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """Forward a free local port to a Service until the block ends. Yields `127.0.0.1:PORT`."""
        arguments = ("port-forward", "--namespace", namespace, f"service/{service}", f":{port}")
        with _reading((self.program, *self.options, *arguments)) as chunks:
            text, deadline = "", time.monotonic() + _FORWARD_SECONDS
            for chunk in chunks(0.5):
                text += chunk
                if found := _FORWARDED.search(text):
                    yield f"127.0.0.1:{found.group(1)}"
                    return
                if time.monotonic() > deadline:
                    break
        raise CommandError(f"`kubectl {' '.join(arguments)}` did not connect: {text.strip() or 'no output'}")


class _Chunks(Protocol):
    def __call__(self, tick: float) -> Iterator[str]: ...


@contextmanager
def _reading(command: tuple[str, ...]) -> Iterator["_Chunks"]:
    """Start a long-running command, yield a reader of its output, and stop the command at the end of the block.

    The reader yields an empty text after each tick without output, and ends when the command ends.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    descriptor = process.stdout.fileno()

    def chunks(tick: float) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while True:
                if not selector.select(tick):
                    yield ""
                elif data := os.read(descriptor, _READ_BYTES):
                    yield decoder.decode(data)
                else:
                    return

    try:
        yield chunks
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def documents(text: str) -> tuple[list[Object], str]:
    """Return the complete JSON objects at the start of a text, and the rest of the text."""
    found: list[Object] = []
    decoder = json.JSONDecoder()
    while (start := text.find("{")) >= 0:
        try:
            document, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            return found, text[start:]
        found.append(document)
        text = text[end:]
    return found, ""

"""Operators as separate processes: started, observed, stopped, killed."""

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kube.kubelet import eventually

IMAGE = "registry.example.com/trainer:1"


@dataclass
class Operator:
    """One operator process."""

    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes]

    def logged(self, words: str) -> bool:
        """Tell whether the log holds these words."""
        return words in self.log.read_text()

    def wait_until_it_says(self, words: str, seconds: float = 180.0) -> None:
        """Wait for a text in the log."""
        try:
            eventually(lambda: self.logged(words), f"the operator logs {words!r}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """Kill it without a clean stop, as after a power loss."""
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 15.0) -> int:
        """Stop it as a Deployment does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def probe(self, path: str) -> tuple[int, str]:
        """Return the HTTP status and the body of a page of its HTTP server."""
        port = re.search(r"metrics and health on port (\d+)", self.log.read_text())
        assert port, "the operator has not said its port"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def start(kubeconfig: Path, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> Operator:
    """Start an operator; without other arguments it leads at once."""
    command = [
        sys.executable,
        "-m",
        "tunemill_operator",
        "run",
        f"--kubeconfig={kubeconfig}",
        f"--trainer-image={IMAGE}",
        "--http-host=127.0.0.1",
        "--http-port=0",
        *arguments,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    return Operator(command, log, process)


@contextmanager
def an_operator(kubeconfig: Path, log: Path, *arguments: str) -> Iterator[Operator]:
    """Run an operator until the block ends."""
    operator = start(kubeconfig, log, *arguments)
    try:
        operator.wait_until_it_says("serving")
        yield operator
    finally:
        ended = operator.process.poll()
        if ended is None:
            operator.kill()
        elif ended > 0:
            raise AssertionError(f"the operator ended with {ended}; it said:\n{operator.log.read_text()}")

"""Waits for servers that tests start."""

import subprocess
import time
from pathlib import Path

import httpx2

_SECONDS = 120


def wait_until_it_answers(server: subprocess.Popen, url: str, log: Path) -> None:
    """Wait until a server answers a request, whatever the answer is.

    Args:
        server: its process.
        url: what to request.
        log: its output, for the message if it ends or does not answer in time.
    """
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            httpx2.get(url, timeout=2, verify=False)
        except httpx2.TransportError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} does not answer after {_SECONDS} s: {log.read_text()}")

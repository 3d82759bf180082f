"""Tests the progress endpoint under a flood of connections: `python -m tunemill_dev.bench.operator.flood`.

Thousands of connections stay half-open, and a thousand others send forged reports as fast as they can. Each is opened
again when the server closes it. At the same time a genuine stage sends reports, each on a new connection. The output is
the duration of its reports and the memory of the server process.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunemill_api.constants import LABEL_FINETUNE
from tunemill_operator.engine.objects import Pod, pod_of
from tunemill_operator.engine.volumes import progress_path
from tunemill_operator.progress.auth import POD_UID, ReportAuthenticator
from tunemill_operator.progress.authority import issue_certificate
from tunemill_operator.progress.board import Board
from tunemill_operator.progress.certificate import NAMES, Certificate
from tunemill_operator.progress.server import application
from tunemill_operator.runtime.listener import listening

VALID_TOKEN = "valid"
_REVIEW_SECONDS = 0.005
_ADDRESSES = 100
"""The number of addresses of each kind of attacker. Together they open more connections than the server accepts."""
_SPREAD_SECONDS = 10.0
"""Seconds over which the attackers start, because a handshake costs the client as much as the server."""
_PATH = progress_path("team-a", "support")


class _Reviewer:
    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        """Review a token like an API server."""
        await asyncio.sleep(_REVIEW_SECONDS)
        if token != VALID_TOKEN:
            return {}
        return {"authenticated": True, "audiences": [audience], "user": {"extra": {POD_UID: ["pod"]}}}


class _Pods:
    def get(self, uid: str) -> Pod | None:
        """Return the pod of the genuine stage."""
        metadata = {
            "namespace": "team-a",
            "name": "pod",
            "uid": uid,
            "resourceVersion": "1",
            "creationTimestamp": "2026-11-21T12:00:00Z",
            "labels": {LABEL_FINETUNE: "support"},
        }
        return pod_of({"metadata": metadata, "status": {"phase": "Running"}})


class _Queue:
    def add(self, key: tuple[str, str]) -> None:
        """Do nothing."""


def main() -> None:
    """Print the results. Return 1 if the server did not keep within its limits."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.bench.operator.flood", description=__doc__)
    parser.add_argument("--half-open", type=int, default=5000, help="connections that never finish their handshake")
    parser.add_argument("--busy", type=int, default=1000, help="connections that send forged reports")
    parser.add_argument("--seconds", type=float, default=20.0, help="for so long")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    parser.add_argument("--attack", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_serve(Path(options.serve)))
        return
    if options.attack:
        asyncio.run(_attack(Path(options.attack), options.half_open, options.busy))
        return
    figures = measure(options.half_open, options.busy, options.seconds)
    print(json.dumps(figures, indent=2))
    sys.exit(int(figures["slowest_valid_s"] > 1 or figures["failed_valid"] > 0 or figures["memory_mib"] > 256))


def measure(half_open: int, busy: int, seconds: float) -> dict[str, Any]:
    """Return the results of a flood against a server in a separate process."""
    with TemporaryDirectory() as path:
        folder = Path(path)
        for name, content in zip(NAMES, issue_certificate("localhost"), strict=True):
            (folder / name).write_bytes(content)
        with _process(f"--serve={folder}") as server:
            _wait_for(folder / "port", server)
            with _process(f"--attack={folder}", f"--half-open={half_open}", f"--busy={busy}") as attacker:
                _wait_for(folder / "attacks", attacker)
                figures = asyncio.run(_send_reports(folder, seconds))
            status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
            peak = next(line for line in status if line.startswith("VmHWM"))
            attacks = json.loads((folder / "attacks").read_text())
            return {**figures, "memory_mib": int(peak.split()[1]) // 1024, **attacks}


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-m", "tunemill_dev.bench.operator.flood", *arguments]) as process:
        try:
            yield process
        finally:
            process.terminate()


def _wait_for(file: Path, process: subprocess.Popen[bytes]) -> None:
    while not file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"{file.name}: the process has ended")
        time.sleep(0.1)


async def _serve(folder: Path) -> None:
    certificate = Certificate(*(folder / name for name in NAMES))
    app = application(ReportAuthenticator(_Reviewer(), _Pods()), Board(_Queue()), lambda _: None)
    async with listening(app, "0.0.0.0", 0, certificate.context) as port:
        (folder / "port.new").write_text(str(port))
        (folder / "port.new").rename(folder / "port")
        await asyncio.Event().wait()


async def _attack(folder: Path, half_open: int, busy: int) -> None:
    """Attack until the process is stopped, and record the number of attempts from time to time."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    port, context = int((folder / "port").read_text()), _context(folder)
    counted = {"half_open_connections": 0, "busy_connections": 0, "forged_reports": 0}

    async def silent(address: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
        counted["half_open_connections"] += 1
        with contextlib.closing(writer):
            writer.write(b"\x16\x03\x01")  # the beginning of a handshake
            await reader.read()

    async def forging(address: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(address, 0))
        counted["busy_connections"] += 1
        with contextlib.closing(writer):
            while await _report(reader, writer, secrets.token_hex(20)):
                counted["forged_reports"] += 1

    attacks = [
        *((silent, 1, number, half_open) for number in range(half_open)),
        *((forging, 2, number, busy) for number in range(busy)),
    ]
    async with asyncio.TaskGroup() as group:
        for attack, net, number, of in attacks:
            delay = _SPREAD_SECONDS * number / of
            group.create_task(_again_and_again(attack, f"127.0.{net}.{number % _ADDRESSES + 1}", delay))
        while True:
            await asyncio.sleep(_SPREAD_SECONDS)
            (folder / "attacks.new").write_text(json.dumps(counted))
            (folder / "attacks.new").rename(folder / "attacks")


async def _send_reports(folder: Path, seconds: float) -> dict[str, Any]:
    """Send a report like a stage. Return its duration."""
    port, context = int((folder / "port").read_text()), _context(folder)
    taken, failed, end = list[float](), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
                with contextlib.closing(writer):
                    good = await _report(reader, writer, VALID_TOKEN) == 200
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            good = False
        failed += not good
        taken.append(time.monotonic() - begun)
        await asyncio.sleep(0.1)
    return {
        "valid_reports": len(taken),
        "failed_valid": failed,
        "slowest_valid_s": round(max(taken), 3),
        "median_valid_s": round(sorted(taken)[len(taken) // 2], 3),
    }


def _context(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False
    return context


async def _again_and_again(attack: Callable[[str], Awaitable[None]], address: str, delay: float) -> None:
    await asyncio.sleep(delay)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await attack(address)
        await asyncio.sleep(1.0)


async def _report(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> int:
    """Send a report and return the HTTP status of the answer."""
    body = b'{"trainerStatus":{"progressPercentage":4}}'
    head = f"POST {_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(line for line in answer.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(int(length.partition(":")[2]))
    return int(answer[9:12])


if __name__ == "__main__":
    main()

"""Runs a serving engine, vLLM or Transformers, as a process with the flags of the serving contract."""

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx2
from tunemill_api.failures import ExitCode
from tunemill_api.publish import ServingTarget

from tunemill_trainer.release.contract import Launch
from tunemill_trainer.serving.errors import ServingError

START_SECONDS = 600.0
"""How long an engine may take to start. vLLM takes minutes for large models, and on a busy CPU."""
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.2
_LOG_BYTES = 4000
"""How much of the end of the log an error message has."""
_API_SERVER = "vllm.entrypoints.openai.api_server"


def program_of(target: ServingTarget, environment: Mapping[str, str]) -> list[str] | None:
    """Return the words before the model with which an engine is started; None when it is not installed.

    The environment of this Python comes before PATH. vLLM also starts as a module, where its command is missing.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
    name = "vllm" if target is ServingTarget.VLLM else "transformers"
    if found := shutil.which(name, path=path):
        return [found, "serve"]
    if target is not ServingTarget.VLLM:
        return None
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    if importlib.machinery.PathFinder.find_spec("vllm", [*places, *sys.path]) is None:
        return None
    return [sys.executable, "-m", _API_SERVER, "--model"]


def is_installed(target: ServingTarget) -> bool:
    """Return whether an engine can be started here. Transformers also needs its web server."""
    if target is ServingTarget.TRANSFORMERS and importlib.util.find_spec("fastapi") is None:
        return False
    return program_of(target, os.environ) is not None


def is_healthy(address: str) -> bool:
    """Return whether the server at an address, a URL without a path, answers that it is ready."""
    try:
        return httpx2.get(f"{address}/health", timeout=5, trust_env=False).status_code == httpx2.codes.OK
    except httpx2.TransportError:
        return False


class Engine:
    """A running engine.

    Attributes:
        url: the base URL for OpenAI clients, which ends in /v1.
        model: the model's name in requests.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", address: str, model: str, log: Path | None) -> None:
        self.url = f"{address}/v1"
        self.model = model
        self._process = process
        self._address = address
        self._log = log

    def wait_until_healthy(self, seconds: float = START_SECONDS, check_stop: Callable[[], None] = lambda: None) -> None:
        """Wait until the engine answers on /health.

        Args:
            seconds: the longest wait.
            check_stop: called several times a second; an exception that it raises ends the wait.

        Raises:
            ServingError: the engine exited, with the end of its log, or did not answer in time.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            check_stop()
            if (code := self._process.poll()) is not None:
                raise ServingError(f"the engine exited with code {code}{self._end()}", ExitCode.SERVICE_UNAVAILABLE)
            if is_healthy(self._address):
                return
            time.sleep(_POLL_SECONDS)
        raise ServingError(
            f"the engine did not answer within {seconds:.0f} s{self._end()}", ExitCode.SERVICE_UNAVAILABLE
        )

    def wait(self) -> int:
        """Wait until the engine exits, and return its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Stop the engine and the processes that it started."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=_STOP_SECONDS)
        with suppress(ProcessLookupError):
            # The engine leads its own process group. vLLM's workers stay in it if their parent ended early.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _end(self) -> str:
        if self._log is None:
            return ""
        text = self._log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
        return f"; the end of its log:\n{text}" if text else "; its log is empty"


@contextmanager
def running(
    launch: Launch,
    *,
    log: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Engine]:
    """Start an engine, and stop it at the end of the block. It is not healthy yet: see `Engine.wait_until_healthy`.

    Args:
        launch: what it loads.
        log: the file for its output; None leaves the output on the terminal.
        host: the address to listen on.
        port: the port; 0 means a free one.
        flags: more flags of the engine, after those of the contract.
        environment: variables that are added to those of this process.

    Raises:
        ServingError: the engine is not installed.
    """
    variables = {**os.environ, **(environment or {})}
    program = program_of(launch.target, variables)
    if program is None:
        package = "vllm" if launch.target is ServingTarget.VLLM else "'transformers[serving]'"
        raise ServingError(
            f"{launch.target.value} is not installed. Run: pip install {package}", ExitCode.CONFIGURATION
        )
    port = port or _free_port(host)
    words = [word for group in launch.flags() for word in group]
    command = [*program, *words, "--host", host, "--port", str(port), *flags]
    with _output(log) as output:
        # In a process group of its own: Ctrl-C on a terminal would end its workers before the server.
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,
        )
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    address = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
    engine = Engine(process, address, launch.served_name, log)
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
        return
    with log.open("wb") as file:
        yield file


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one:
        one.bind((host, 0))
        port: int = one.getsockname()[1]
        return port

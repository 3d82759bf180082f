"""Starts vLLM's OpenAI server, several times from one process that has imported vLLM."""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tunemill_trainer.serving.engine import is_healthy

from tunemill_dev.cluster.home import home
from tunemill_dev.cluster.ports import free_ports
from tunemill_dev.serving import fork_server

_START_SECONDS = 300
_PREFIX = re.compile(r"^.*?\[\w+\.py:\d+\] ")
"""Of a line of vLLM's log: the process, the time and the place."""
FLAGS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "4")
"""Flags for a small model on a CPU, which are not part of the serving contract."""


def environment(folder: Path) -> dict[str, str]:
    """Return the variables with which vLLM runs on a CPU.

    Args:
        folder: where vLLM is installed.
    """
    # vLLM starts Python again to look at a model's class. The environment's own packages come first: the folder may
    # have others of the same name.
    places = [sysconfig.get_path("purelib"), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(places),
        "VLLM_CACHE_ROOT": str(home() / "vllm"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # The ranks of log-probabilities are computed by a compiled function, and compilers start processes.
        "TORCHDYNAMO_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",
    }


class EngineError(Exception):
    """The engine did not start. The message is the error in its log."""


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        address: its URL, without a path.
        log: the file with its output.
    """

    address: str
    log: Path


class Engines:
    """The process that starts the servers."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._imported = False

    @contextmanager
    def serve(self, arguments: Sequence[str], log: Path) -> Iterator[Server]:
        """Run a server until the end of the block. Two may run at once.

        Args:
            arguments: the arguments of `vllm serve` without host and port; the model is given as `--model`.
            log: the file for its output.

        Raises:
            EngineError: it ended before it was healthy.
        """
        (port,) = free_ports(1)
        if not self._imported:
            self._line()
            self._imported = True
        assert self._process.stdin is not None
        given = ["--host", "127.0.0.1", "--port", str(port), *FLAGS, *arguments]
        self._process.stdin.write(json.dumps({"arguments": given, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        server = Server(f"http://127.0.0.1:{port}", log)
        try:
            _wait_until_healthy(pid, server)
            yield server
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineError("vLLM cannot be imported; run dev/tunemill_dev/serving/fork_server.py to see why")
        return line


@contextmanager
def engines(root: Path) -> Iterator[Engines]:
    """Import vLLM in a process, which takes half a minute. The first server waits for it.

    Args:
        root: the root of the repository.

    Raises:
        FileNotFoundError: vLLM is not installed.
    """
    folder = root / "build" / "vllm"
    if not (folder / "vllm").is_dir():
        raise FileNotFoundError(f"{folder} does not contain vLLM: run `make build/vllm/.ready`")
    process = subprocess.Popen(
        [sys.executable, fork_server.__file__, str(folder)],
        env={**os.environ, **environment(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            yield Engines(process)
        finally:
            process.kill()


def _wait_until_healthy(pid: int, server: Server) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if is_healthy(server.address):
            return
        if not Path("/proc", str(pid)).exists():
            raise EngineError(_error_of(server.log))
        time.sleep(0.1)
    raise EngineError(f"not healthy after {_START_SECONDS} s")


def _error_of(log: Path) -> str:
    """Return the first error in a log, which later ones follow from. A warning about `ulimit` quotes one, too."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if "ulimit" not in line]
    texts = [_PREFIX.sub("", line).strip() for line in lines if "Error: " in line or "Error(" in line]
    # Tracebacks quote the statement, too.
    errors = [text for text in texts if not text.startswith("raise ")]
    return errors[0] if errors else "it ended without an error in its log"

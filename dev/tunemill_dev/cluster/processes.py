"""Processes by identity, so that a reused pid is detected, and commands with error messages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError

_PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """A process: its pid, its start in clock ticks since boot, and the boot that these ticks count from."""

    pid: int
    start_ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int, proc: Path = _PROC) -> ProcessId | None:
        """Return the identity of the process with this pid; None if there is none or only a zombie."""
        try:
            stat = (proc / str(pid) / "stat").read_text()
            boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command name in brackets may contain spaces and brackets (proc_pid_stat(5)).
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in {"Z", "X"} else cls(pid, int(fields[19]), boot)

    @classmethod
    def read(cls, path: Path) -> ProcessId | None:
        """Return the identity recorded in a file; None if the file does not exist or is incomplete after a crash."""
        try:
            return cls(**json.loads(path.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Record this identity atomically."""
        replace_file(path, json.dumps(asdict(self)))

    def is_alive(self, proc: Path = _PROC) -> bool:
        """Whether this process still runs."""
        return ProcessId.of(self.pid, proc) == self

    def kill(self) -> None:
        """Kill the process and wait until it has ended. Another process with the same pid is not affected."""
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if not wait_until(lambda: not self.is_alive(), seconds=20):
            raise ClusterError(f"Process {self.pid} is still there 20 s after SIGKILL; look at /proc/{self.pid}/stack.")


def run(argv: Sequence[str | Path], *, stdin: str | None = None, what: str | None = None) -> str:
    """Run a command and return its standard output. ClusterError with its error output if it fails."""
    try:
        done = subprocess.run([str(part) for part in argv], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"The command {argv[0]} was not found: install it, then try again.") from error
    if done.returncode:
        words = "\n".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-20:])
        raise ClusterError(f"{what or Path(argv[0]).name + ' failed'} (exit code {done.returncode}):\n{words}")
    return done.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Whether a command exits with 0."""
    return subprocess.run([str(part) for part in argv], capture_output=True, check=False).returncode == 0


def wait_until(condition: Callable[[], bool], *, seconds: float, every: float = 0.05) -> bool:
    """Wait for a condition. False if it was not fulfilled in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def replace_file(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
    fresh.rename(path)

"""The first process of a cluster: starts the components and restarts those that exit. Its end stops all of them.

It runs as PID 1 of the cluster's namespaces, or as a plain process for a control plane without a node. It is always
stopped with a kill: the kernel then ends every process of the PID namespace, and removes mounts and network. A crash
has the same effect.

Protocol with the process that starts it: it prints its pid in the host's namespace, then waits for the line `go`. If
standard input ends without that line, the starting process has died, and the supervisor stops the incomplete cluster.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tunemill_dev.cluster.plan import Component, Plan
from tunemill_dev.cluster.probes import is_there
from tunemill_dev.cluster.processes import replace_file

_TICK_SECONDS = 0.2
_STABLE_SECONDS = 60
_SLOWEST_RESTART_SECONDS = 10.0
_LOG_BYTES = 20 * 2**20


def main() -> None:
    """Run the plan whose path is the only argument."""
    plan = Plan.read(Path(sys.argv[1]))
    # Before /proc is mounted again, /proc/self still names this process as the host sees it.
    print(Path("/proc/self").readlink(), flush=True)
    if sys.stdin.readline().strip() != "go":
        raise SystemExit(1)
    _leave_terminal(Path(plan.logs), keep_stdin=plan.lifeline)
    for command in plan.setup:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    Supervisor(plan).run()


@dataclass
class _State:
    """The state of a component."""

    component: Component
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    failures_in_a_row: int = field(default=0, repr=False)


class Supervisor:
    """The loop over all components."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._states = [_State(component) for component in plan.components]
        self._published = ""

    def run(self) -> None:
        """Keep everything running until a signal, or until the lifeline breaks."""
        awaited = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
        signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
        try:
            while True:
                self._reap()
                self._start_due_programs()
                self._publish()
                received = signal.sigtimedwait(awaited, _TICK_SECONDS)
                if received and received.si_signo != signal.SIGCHLD:
                    return
                if self._plan.lifeline and select.select([0], [], [], 0)[0]:
                    return
        finally:
            for state in self._states:
                if state.process:
                    state.process.kill()

    def _reap(self) -> None:
        """Reap dead children. As PID 1, the supervisor also adopts container shims whose parent has died."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for state in self._states:
                if state.process and state.process.pid == pid:
                    self._note_exit(state, os.waitstatus_to_exitcode(status))

    @staticmethod
    def _note_exit(state: _State, code: int) -> None:
        now = time.monotonic()
        state.failures_in_a_row = 0 if now - state.started > _STABLE_SECONDS else state.failures_in_a_row + 1
        state.process, state.last_exit = None, code
        state.restarts += 1
        state.due = now + min(0.25 * 2**state.failures_in_a_row, _SLOWEST_RESTART_SECONDS)

    def _start_due_programs(self) -> None:
        for state in self._states:
            ready = state.process is None and time.monotonic() >= state.due
            if ready and all(is_there(address) for address in state.component.needs):
                with _open_log(Path(self._plan.logs) / f"{state.component.name}.log") as log:
                    state.process = subprocess.Popen(
                        state.component.argv,
                        env={**os.environ, **state.component.environment},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        # The child inherits the mask, and a component must see SIGTERM.
                        preexec_fn=_unblock_signals,  # noqa: PLW1509 - this process has one thread
                    )
                state.started = time.monotonic()

    def _publish(self) -> None:
        """Write the state of all components for `status` and error messages, if it has changed."""
        text = json.dumps(
            {
                state.component.name: {
                    "running": state.process is not None,
                    "restarts": state.restarts,
                    "last_exit": state.last_exit,
                }
                for state in self._states
            }
        )
        if text != self._published:
            replace_file(Path(self._plan.status), text, mode=0o644)
            self._published = text


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def _open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _leave_terminal(logs: Path, *, keep_stdin: bool) -> None:
    with _open_log(logs / "supervisor.log") as log, Path(os.devnull).open("rb") as nothing:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        if not keep_stdin:
            os.dup2(nothing.fileno(), 0)


if __name__ == "__main__":
    main()

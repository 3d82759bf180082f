"""Runs several stages one after the other, each in a separate process, in the container of the train pod.

Each stage is the program `tunemill-trainer STAGE` from PATH, so that a user's own image can replace one. This process
does not import the stages' libraries, because its memory counts toward the pod's limit while they run. As the first
process of a container, it also forwards SIGTERM and reaps orphaned processes.

See docs/adr/0013-train-and-evaluate-in-one-container.md.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage, StageReport, failure_of, reports_in, termination_message

from tunemill_trainer.process import console, signals
from tunemill_trainer.process.progress import Destination, post

PROGRAM = "tunemill-trainer"
MEMORY_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Files with the number of OOM kills in this container, for cgroup v2 and v1."""
_AGAIN_SECONDS, _REPEAT_SECONDS = 10.0, 60.0
"""Seconds until a report is sent again, after a failed and after a successful delivery. A successful one is repeated,
too, because the operator may have been restarted since."""
_KILLED = 128 + signal.SIGKILL
_BY_SIGNAL = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGINT))

_log = logging.getLogger(__name__)


def main(stages: Sequence[Stage], options: Sequence[str], report_path: Path) -> int:
    """Run the stages in this order until one fails, and return the exit code of the last one that ran.

    Args:
        stages: the stages, in order.
        options: command line options for the program of each stage.
        report_path: where each stage writes its StageReport. At the end, the file has all reports, one per line.
    """
    console.log_to_stdout()
    return Supervisor(stages, options, report_path).run()


class Supervisor:
    """Runs stages. Must be used in the main thread, because it handles signals. Arguments as in `main`."""

    def __init__(self, stages: Sequence[Stage], options: Sequence[str], report_path: Path) -> None:
        self._stages = stages
        self._options = options
        self._log_file = _TerminationLog(report_path)
        self._reports: list[StageReport] = []
        self._left = ""
        self._child = 0
        self._stop = 0
        self._forwarded = False

    def run(self) -> int:
        """Run the stages and return the exit code."""
        self._log_file.write("")
        ended = threading.Event()
        code = int(ExitCode.DONE)
        with signals.handling(self._on_signal):
            for stage in self._stages:
                code, report = self._run(stage)
                self._reports += [report] if report else []
                if code:
                    break
                if report and report.failure is None and stage is not self._stages[-1]:
                    _announce(report, ended)
            ended.set()
            self._finish()
        return code

    def _run(self, stage: Stage) -> tuple[int, StageReport | None]:
        """Run a stage; return its exit code, and its report if it wrote one."""
        started_at = datetime.now(UTC)
        if self._stop:
            return self._interrupted(stage, started_at, f"the pod got a request to stop before {stage} started")
        kills, before = _memory_kills(), self._log_file.read()
        code = self._wait(self._start(stage))
        written = self._log_file.read()
        report = next((report for report in reports_in(written) if report.stage is stage), None)
        _log.info("%s exited with code %d%s", stage, code, "" if report else " without a report")
        if report is None and written != before:
            self._left = written
        if code in _BY_SIGNAL and self._stop:
            # The program has no signal handler, or had not installed it yet. This is not a failure of the stage.
            if report:
                return int(ExitCode.INTERRUPTED), report
            return self._interrupted(stage, started_at, f"{stage} was terminated by the signal of a request to stop")
        if report is None and code == _KILLED and _memory_kills() > kills:
            # Without cgroup group kills, the kernel kills only the largest process, and the container keeps running.
            message = f"the kernel killed the process of {stage}: the container reached its memory limit"
            failure = failure_of(Reason.OUT_OF_MEMORY, message)
            report = StageReport(stage=stage, started_at=started_at, finished_at=datetime.now(UTC), failure=failure)
        return code, report

    def _interrupted(self, stage: Stage, started_at: datetime, message: str) -> tuple[int, StageReport]:
        failure = failure_of(Reason.INTERRUPTED, message)
        report = StageReport(stage=stage, started_at=started_at, finished_at=datetime.now(UTC), failure=failure)
        return int(ExitCode.INTERRUPTED), report

    def _start(self, stage: Stage) -> int:
        """Start the program of a stage and return its process id.

        The program runs in a new session, so that it gets Ctrl-C only once, through this process, and so that the
        processes that it leaves can be killed together.
        """
        found = shutil.which(PROGRAM)
        program = [found] if found else [sys.executable, "-m", "tunemill_trainer"]
        arguments = [*program, stage.value, *self._options]
        pid = os.posix_spawn(
            program[0], arguments, os.environ, setsid=True, setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE]
        )
        self._child = pid
        self._forward()  # a signal may have arrived before the process started
        return pid

    def _wait(self, pid: int) -> int:
        """Wait for a stage and reap all other processes; return its exit code, or 128 plus the signal as shells do."""
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                break
        self._child = 0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return signals.exit_code(status)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop = self._stop or number
        self._forward()

    def _forward(self) -> None:
        if self._child and self._stop and not self._forwarded:
            self._forwarded = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, self._stop)

    def _finish(self) -> None:
        """Write the reports of all stages, followed by any other text that a stage wrote into the file."""
        if not self._reports:
            return  # for an empty file, the kubelet uses the last lines of the log as termination message
        message = termination_message(self._reports)
        room = TERMINATION_LOG_BYTES - len(message.encode()) - 1
        if self._left and room > 0:
            message += "\n" + self._left.encode()[-room:].decode(errors="ignore")
        self._log_file.write(message)


class _TerminationLog:
    """The file with the reports. In a pod it is a mounted file, which can be written but not replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        """Return the content; empty if it cannot be read."""
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def write(self, text: str) -> None:
        """Overwrite the content with a single write, so that the file has a complete report at any time."""
        data = text.encode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
            finally:
                os.close(file)
        except OSError as error:
            _log.warning("cannot write the report to %s: %s", self._path, error.strerror)


def _announce(report: StageReport, ended: threading.Event) -> None:
    """Send the report of a stage to the operator while the next stage runs.

    The termination message, which the kubelet publishes at the end, is authoritative.
    """
    destination = Destination.from_environment()
    if destination is None:
        return
    body = {"report": report.model_dump(mode="json", by_alias=True, exclude_none=True)}

    def send() -> None:
        while not ended.is_set():
            ended.wait(_REPEAT_SECONDS if post(destination, body) else _AGAIN_SECONDS)

    threading.Thread(target=send, name="announcement", daemon=True).start()


def _memory_kills() -> int:
    """Return the number of OOM kills in this container so far; 0 if unknown."""
    for path in MEMORY_EVENTS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
    return 0

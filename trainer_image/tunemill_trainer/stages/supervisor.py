"""Runs stages one after the other, each in a process of its own: what the container of the train pod does.

Each stage is the program `tunemill-trainer STAGE` that PATH finds, so that an image of a user's own can replace one of
them. This process imports none of the stages' libraries, as its memory counts against the pod's limit while they work.
It also does what the first process of a container has to: it hands SIGTERM on and reaps processes without a parent.

See docs/adr/0013-train-and-evaluate-in-one-container.md.
"""

import contextlib
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage, StageReport, failure_of, reports_in, termination_message

from tunemill_trainer.process import console
from tunemill_trainer.process.progress import Destination, post

PROGRAM = "tunemill-trainer"
MEMORY_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Where the kernel counts the processes of this container that it killed for memory: with cgroup v2, and with v1."""
_AGAIN_SECONDS, _REPEAT_SECONDS = 10.0, 60.0
"""When a report is sent again that was not taken, and one that was: the operator may have been replaced since."""
_KILLED = 128 + signal.SIGKILL
_BY_SIGNAL = frozenset(128 + number for number in (signal.SIGTERM, signal.SIGINT))

_log = logging.getLogger(__name__)


def main(stages: Sequence[Stage], options: Sequence[str], report_path: Path) -> int:
    """Run the stages in this order until one fails, and return the exit code of the last one that ran.

    Args:
        stages: which.
        options: for the program of every stage.
        report_path: where each stage writes its StageReport; in the end it holds all of them, one a line.
    """
    console.log_to_stdout()
    return Supervisor(stages, options, report_path).run()


class Supervisor:
    """Runs stages, in the main thread of its process.

    Args:
        stages: in their order.
        options: for the program of every stage.
        report_path: as in `main`.
    """

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
        with self._listening():
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
        """Return the exit code of a stage, and its report if there is one."""
        started_at = datetime.now(UTC)
        if self._stop:
            return self._interrupted(stage, started_at, f"the pod was asked to stop before {stage} began")
        kills, before = _memory_kills(), self._log_file.read()
        code = self._wait(self._start(stage))
        said = self._log_file.read()
        report = next((report for report in reports_in(said) if report.stage is stage), None)
        _log.info("%s ended with exit code %d%s", stage, code, "" if report else " and without a report")
        if report is None and said != before:
            self._left = said
        if code in _BY_SIGNAL and self._stop:
            # It was stopped before it could listen, or it never does. Either way it was no failure of the stage.
            if report:
                return int(ExitCode.INTERRUPTED), report
            return self._interrupted(stage, started_at, f"{stage} was asked to stop, and ended by the signal")
        if report is None and code == _KILLED and _memory_kills() > kills:
            # Without a group kill the kernel ends the largest process only, and the container goes on.
            message = f"the kernel killed the process of {stage}: the container has reached its memory limit"
            failure = failure_of(Reason.OUT_OF_MEMORY, message)
            report = StageReport(stage=stage, started_at=started_at, finished_at=datetime.now(UTC), failure=failure)
        return code, report

    def _interrupted(self, stage: Stage, started_at: datetime, message: str) -> tuple[int, StageReport]:
        failure = failure_of(Reason.INTERRUPTED, message)
        report = StageReport(stage=stage, started_at=started_at, finished_at=datetime.now(UTC), failure=failure)
        return int(ExitCode.INTERRUPTED), report

    def _start(self, stage: Stage) -> int:
        """Start the program of a stage and return its process id.

        It leads a session of its own: Ctrl-C on a terminal reaches it once, through this process, and whatever it
        leaves behind can be ended with it.
        """
        found = shutil.which(PROGRAM)
        program = [found] if found else [sys.executable, "-m", "tunemill_trainer"]
        arguments = [*program, stage.value, *self._options]
        pid = os.posix_spawn(
            program[0], arguments, os.environ, setsid=True, setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE]
        )
        self._child = pid
        self._forward()  # a signal that came before there was a process
        return pid

    def _wait(self, pid: int) -> int:
        """Wait for the end of a stage, reap every other process on the way, and return the exit code of a shell."""
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                break
        self._child = 0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        def handle(number: int, _frame: FrameType | None) -> None:
            self._stop = self._stop or number
            self._forward()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self) -> None:
        if self._child and self._stop and not self._forwarded:
            self._forwarded = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, self._stop)

    def _finish(self) -> None:
        """Leave the reports of all stages, and below them what a stage left that is no report."""
        if not self._reports:
            return  # an empty file has the kubelet show the last lines of the log in its place
        message = termination_message(self._reports)
        room = TERMINATION_LOG_BYTES - len(message.encode()) - 1
        if self._left and room > 0:
            message += "\n" + self._left.encode()[-room:].decode(errors="ignore")
        self._log_file.write(message)


class _TerminationLog:
    """The file with the reports. In a pod it is a mount: it can be written, but not replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> str:
        """Return what is in it; empty when it cannot be read."""
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def write(self, text: str) -> None:
        """Write the text in one go: whoever reads meanwhile, or after a kill, finds a report in it."""
        data = text.encode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
            finally:
                os.close(file)
        except OSError as error:
            _log.warning("the report could not be written to %s: %s", self._path, error.strerror)


def _announce(report: StageReport, ended: threading.Event) -> None:
    """Tell the operator that a stage is done while the next one works. The termination message stays the truth."""
    destination = Destination.from_environment()
    if destination is None:
        return
    body = {"report": report.model_dump(mode="json", by_alias=True, exclude_none=True)}

    def send() -> None:
        while not ended.is_set():
            ended.wait(_REPEAT_SECONDS if post(destination, body) else _AGAIN_SECONDS)

    threading.Thread(target=send, name="announcement", daemon=True).start()


def _memory_kills() -> int:
    """Return how many processes of this container the kernel has killed for memory; 0 where it does not say."""
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

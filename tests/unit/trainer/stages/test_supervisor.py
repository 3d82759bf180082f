"""Train and evaluate run in one container, in separate processes, and both reports reach the operator."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from property.builders import a_failure_report
from tunemill_api.constants import TERMINATION_LOG_BYTES
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage, StageReport, reports_in
from tunemill_dev.played import a_report
from tunemill_trainer.stages import supervisor
from tunemill_trainer.stages.supervisor import Supervisor

pytestmark = pytest.mark.slow  # each test starts processes

DISPATCH = """#!/bin/sh
echo "$*" >> "$FOLDER/started"
exec sh "$FOLDER/$1.sh"
"""
WAITS = 'trap "exit 75" TERM; echo ready; while :; do sleep 0.05; done'
"""A stage that works until it is asked to stop, and ends as a stage does then."""


class Container:
    """A folder in which `tunemill-trainer STAGE` is a shell script of the test's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = folder / "termination-log"
        self.report.touch()
        program = folder / "bin" / "tunemill-trainer"
        program.parent.mkdir()
        program.write_text(DISPATCH)
        program.chmod(0o755)
        for stage in (Stage.TRAIN, Stage.EVALUATE):
            self.stage(stage, a_report(stage))

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the container."""
        return os.environ | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "FOLDER": str(self.folder)}

    def stage(self, stage: Stage, report: str = "", end: str = "") -> None:
        """Decide what a stage does: it leaves a report, and then what the shell commands say."""
        (self.folder / f"{stage}.json").write_text(report)
        leaves = f'cat "$FOLDER/{stage}.json" > {self.report}' if report else ":"
        (self.folder / f"{stage}.sh").write_text(f"echo {stage} works\n{leaves}\n{end}\n")

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Run the command of the train pod's container."""
        command = [sys.executable, "-m", "tunemill_trainer", "stages", "train", "evaluate", "--report"]
        with subprocess.Popen(
            [*command, str(self.report)], env=self.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.terminate()  # it takes the stage with it
                process.wait(30)

    def run(self) -> int:
        """Run it to its end and return the exit code."""
        with self.running() as process:
            self.log = process.communicate(timeout=60)[0]
            return process.returncode

    def started(self) -> list[str]:
        """Return the stages that were started."""
        file = self.folder / "started"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def reports(self) -> list[StageReport]:
        """Return the reports in the termination message, which has to be one report a line."""
        message = self.report.read_text()
        assert len(message.encode()) <= TERMINATION_LOG_BYTES
        reports = list(reports_in(message))
        assert len(reports) == len(message.splitlines())
        return reports


@pytest.fixture
def container(tmp_path: Path) -> Container:
    """A container whose stages succeed."""
    return Container(tmp_path)


def until(process: subprocess.Popen[str], text: str) -> None:
    """Read the log until a line contains the text."""
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the log ended without {text!r}")


def test_both_stages_run_and_both_reports_are_kept(container: Container) -> None:
    """The termination message has one line per stage. The stages' output is in the pod's log."""
    assert container.run() == 0
    assert container.started() == ["train", "evaluate"]
    assert [(report.stage, report.failure) for report in container.reports()] == [("train", None), ("evaluate", None)]
    assert "train works" in container.log
    assert "evaluate works" in container.log


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE])
def test_stages_before_a_failure_are_reported_too(container: Container, stage: Stage) -> None:
    """The exit code is that of the failed stage, and no later stage starts."""
    container.stage(stage, a_failure_report(stage, Reason.CUDA_UNAVAILABLE), "exit 78")
    assert container.run() == 78
    wanted = [Stage.TRAIN, Stage.EVALUATE][: 1 + (stage is Stage.EVALUATE)]
    assert container.started() == wanted
    assert [report.stage for report in container.reports()] == wanted
    failure = container.reports()[-1].failure
    assert failure
    assert failure.reason is Reason.CUDA_UNAVAILABLE


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.EVALUATE])
def test_sigterm_is_forwarded_to_the_running_stage(container: Container, stage: Stage) -> None:
    """The stage has time to stop, and its exit code is the container's: 75 is not a retry."""
    container.stage(stage, a_failure_report(stage, Reason.INTERRUPTED), WAITS)
    with container.running() as process:
        until(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.INTERRUPTED
    assert container.reports()[-1].stage is stage
    assert container.started()[-1] == stage


def test_evaluate_does_not_start_after_a_request_to_stop(container: Container) -> None:
    """Train succeeds in spite of the request. Evaluate does not start, and the message has the reason."""
    ends_well = 'trap "exit 0" TERM; echo ready; while :; do sleep 0.05; done'
    container.stage(Stage.TRAIN, a_report(Stage.TRAIN), ends_well)
    with container.running() as process:
        until(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.INTERRUPTED
    train, evaluate = container.reports()
    assert train.failure is None
    assert evaluate.stage is Stage.EVALUATE
    assert evaluate.failure
    assert evaluate.failure.reason is Reason.INTERRUPTED
    assert container.started() == ["train"]


def test_a_stage_without_signal_handler_was_interrupted(container: Container) -> None:
    """A stage that SIGTERM kills is reported as interrupted, which is not a retry either."""
    container.stage(Stage.TRAIN, "", "echo ready; exec sleep 60")
    with container.running() as process:
        until(process, "ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == ExitCode.INTERRUPTED
    (report,) = container.reports()
    assert report.failure
    assert report.failure.reason is Reason.INTERRUPTED


def test_a_killed_stage_gives_the_exit_code_of_a_shell(container: Container) -> None:
    """SIGKILL gives 137, and the report of the stage before is kept."""
    container.stage(Stage.EVALUATE, "", "kill -KILL $$")
    assert container.run() == 137
    assert [report.stage for report in container.reports()] == [Stage.TRAIN]


def test_the_report_of_train_survives_a_killed_container(container: Container) -> None:
    """While evaluate runs, the termination message has the report of train already."""
    container.stage(Stage.EVALUATE, "", f'echo $$ > "$FOLDER/pid"; {WAITS}')
    with container.running() as process:
        until(process, "ready")
        process.kill()
        os.kill(int((container.folder / "pid").read_text()), signal.SIGKILL)
    assert [report.stage for report in container.reports()] == [Stage.TRAIN]


def test_without_a_report_the_message_is_left_to_the_kubelet(container: Container) -> None:
    """For an empty file, the kubelet uses the last lines of the log."""
    container.stage(Stage.TRAIN, "", "echo a last word; exit 3")
    assert container.run() == 3
    assert container.report.read_text() == ""
    assert "a last word" in container.log


def test_a_successful_stage_without_a_report_is_accepted(container: Container) -> None:
    """Evaluate still runs, because only the exit code counts, and its report is the only one."""
    container.stage(Stage.TRAIN)
    assert container.run() == 0
    assert [report.stage for report in container.reports()] == [Stage.EVALUATE]


def test_other_text_is_kept_below_the_reports(container: Container) -> None:
    """A user's own trainer may write plain text. It is shown, and the report of train is kept."""
    container.stage(Stage.EVALUATE, "out of coffee", "exit 1")
    assert container.run() == 1
    first, last = container.report.read_text().splitlines()
    assert StageReport.model_validate_json(first).stage is Stage.TRAIN
    assert last == "out of coffee"


def test_large_reports_are_shortened_in_the_middle(container: Container) -> None:
    """Two reports share the 4096 bytes of the kubelet. Start and end of the failure message are kept."""
    long = f"begin {'x' * 3000} end"
    container.stage(Stage.EVALUATE, a_failure_report(Stage.EVALUATE, Reason.INTERNAL_ERROR, long), "exit 70")
    padded = json.loads(a_report(Stage.TRAIN))
    padded["trained"]["device"] = "d" * 1500
    container.stage(Stage.TRAIN, json.dumps(padded))
    assert container.run() == 70
    train, evaluate = container.reports()
    assert train.trained
    assert train.trained.device == "d" * 1500
    assert evaluate.failure
    assert evaluate.failure.message.startswith("begin xxx")
    assert evaluate.failure.message.endswith("xxx end")


def test_a_stale_report_is_ignored(container: Container) -> None:
    """In a local run, the file may have the report of an earlier run."""
    container.report.write_text(a_report(Stage.TRAIN))
    container.stage(Stage.TRAIN, "", "exit 3")
    assert container.run() == 3
    assert container.report.read_text() == ""


def test_a_users_program_can_replace_one_stage(container: Container) -> None:
    """With a wrapper before Tunemill's program on PATH, the stages run through it, without additional options."""
    program = container.folder / "bin" / "tunemill-trainer"
    program.write_text('#!/bin/sh\n[ "$1" = train ] && echo "own train" || exec sh "$FOLDER/$1.sh"\n')
    assert container.run() == 0
    assert "own train" in container.log
    assert "evaluate works" in container.log


def test_leftover_processes_of_a_stage_are_killed(container: Container) -> None:
    """A leftover process of train must not occupy the GPU, nor keep the container running."""
    container.stage(Stage.TRAIN, a_report(Stage.TRAIN), 'sleep 300 & echo $! > "$FOLDER/left"')
    assert container.run() == 0
    left = int((container.folder / "left").read_text())
    deadline = time.monotonic() + 10
    while _alive(left):
        assert time.monotonic() < deadline, "the process still runs"
        time.sleep(0.02)


def test_an_oom_killed_process_is_reported(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cgroup v1 or singleProcessOOMKill, the kernel kills only the stage, so the supervisor reports it."""
    events = container.folder / "memory.events"
    events.write_text("low 0\noom 3\noom_kill 2\n")
    container.stage(Stage.EVALUATE, "", f'echo "oom_kill 3" > {events}; kill -KILL $$')
    monkeypatch.setattr(supervisor, "MEMORY_EVENTS", (events,))
    monkeypatch.setattr(os, "environ", container.environment)
    assert Supervisor([Stage.TRAIN, Stage.EVALUATE], [], container.report).run() == 137
    train, evaluate = container.reports()
    assert train.failure is None
    assert evaluate.failure
    assert evaluate.failure.reason is Reason.OUT_OF_MEMORY


def test_the_supervisor_does_not_import_torch() -> None:
    """It runs as long as the stages, and its memory counts toward their limit."""
    program = "import sys, tunemill_trainer.__main__, tunemill_trainer.stages.supervisor; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "pyarrow", "boto3"} & set(modules)


def test_reports_of_the_supervisor_have_real_times(container: Container) -> None:
    """The operator computes the running time from them."""
    began = datetime.now(UTC)
    container.stage(Stage.TRAIN, "", "echo ready; exec sleep 60")
    with container.running() as process:
        until(process, "ready")
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    (report,) = container.reports()
    assert began <= report.started_at <= report.finished_at <= datetime.now(UTC)


def _alive(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and is not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

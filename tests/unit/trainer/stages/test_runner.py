"""A stage always ends with a report, a reason and the matching exit code."""

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tunemill_api.constants import ENV_GRACE_SECONDS, TERMINATION_LOG_BYTES
from tunemill_api.failures import Reason
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage, StageReport
from tunemill_api.status import DatasetFacts, PreparedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.stages import runner
from tunemill_trainer.stages.context import StageContext

FACTS = PreparedFacts(
    key="00112233aabbccdd",
    base_model_revision="c0ffee",
    dataset_digest="0" * 64,
    tokenizer_mode="Reuse",
    dataset=DatasetFacts(format="OpenAI", rows=2, train_rows=1, evaluation_rows=1),
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the environment variables that stages set for their libraries."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_stage_does_not_start_with_an_endpoint_at_a_metadata_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is sent, so neither its responses nor a token are exposed."""
    for field in ("dataset", "workspace", "hub"):
        machine = Machine(tmp_path, monkeypatch)
        run = json.loads(machine.run_spec.read_text())
        run["spec"].setdefault(field, {})["endpoint"] = "http://169.254.169.254/latest"
        machine.run_spec.write_text(json.dumps(run))
        _, report = machine.run(lambda _: pytest.fail("the stage has begun"))
        assert report.failure is not None
        assert report.failure.reason is Reason.INVALID_SPEC
        assert f"spec.{field}.endpoint resolves to 169.254.169.254" in report.failure.message


class Machine:
    """Runs a test's stage function in place of prepare."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self.run_spec = folder / "run.json"
        spec = FineTuneSpec.model_validate(
            {
                "baseModel": {"id": "acme/tiny"},
                "dataset": {"uri": "s3://team-a/calls.jsonl", "region": "us-east-1"},
                "publish": {"repository": "acme/tools"},
            }
        )
        run = RunSpec(namespace="team-a", name="tools", run_id="r1", spec=spec)
        self.run_spec.write_text(run.model_dump_json(by_alias=True))

    def run(self, function: Callable[[StageContext], object]) -> tuple[int, StageReport]:
        """Run the function as prepare and return exit code and report."""
        module = ModuleType("prepare")
        module.run = function  # type: ignore[attr-defined]
        self._monkeypatch.setitem(sys.modules, "tunemill_trainer.stages.prepare", module)
        self._monkeypatch.setattr("tunemill_trainer.stages.prepare", module, raising=False)
        report = self.folder / "report.json"
        code = runner.main(Stage.PREPARE, self.run_spec, self.folder / "work", report)
        assert len(report.read_bytes()) <= TERMINATION_LOG_BYTES
        return code, StageReport.model_validate_json(report.read_text())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a valid RunSpec."""
    return Machine(tmp_path, monkeypatch)


def raising(error: BaseException) -> Callable[[StageContext], object]:
    """Return a stage that raises an exception."""

    def stage(context: StageContext) -> object:
        raise error

    return stage


@pytest.mark.parametrize("executed", [True, False])
def test_success_is_reported_with_key_and_facts(machine: Machine, executed: bool) -> None:
    """The report that the operator reads, also when the output existed already."""
    code, report = machine.run(lambda _context: (FACTS, executed))
    assert code == 0
    assert (report.stage, report.key, report.executed, report.prepared) == ("prepare", FACTS.key, executed, FACTS)
    assert report.failure is None
    assert report.started_at <= report.finished_at


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (StageError(Reason.DATASET_EMPTY, "no rows"), 65, Reason.DATASET_EMPTY),
        (OSError(errno.ENOSPC, "No space left on device"), 71, Reason.DISK_FULL),
        (OSError(errno.EDQUOT, "Quota exceeded"), 71, Reason.DISK_FULL),
        (MemoryError(), 69, Reason.OUT_OF_MEMORY),
        (KeyboardInterrupt(), 75, Reason.INTERRUPTED),
        (ZeroDivisionError("division by zero"), 70, Reason.INTERNAL_ERROR),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_failure_has_an_exit_code_and_a_reason(
    machine: Machine, error: BaseException, code: int, reason: Reason
) -> None:
    """As required by the Job's podFailurePolicy. A remedy is always given."""
    found_code, report = machine.run(raising(error))
    assert found_code == code
    assert report.failure is not None
    assert report.failure.reason == reason
    assert report.failure.remedy


def test_a_full_disk_is_recognized_as_a_cause(machine: Machine) -> None:
    """A library's own exception does not hide that the disk is full."""

    def stage(context: StageContext) -> object:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not write the table") from error

    code, report = machine.run(stage)
    assert code == 71
    assert report.failure is not None
    assert str(machine.folder / "work") in report.failure.message


def test_an_internal_error_is_one_line_in_the_status_and_a_traceback_in_the_log(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Users do not have to read a traceback."""
    _, report = machine.run(raising(ZeroDivisionError("first line\nsecond line")))
    assert report.failure is not None
    assert report.failure.message == "ZeroDivisionError: first line"
    assert any(record.exc_info for record in caplog.records)


def test_a_message_of_any_length_fits_the_termination_log(machine: Machine) -> None:
    """A long message is shortened in its middle, and the report stays valid JSON."""
    _, report = machine.run(raising(StageError(Reason.DATASET_INVALID_ROWS, "begin " + "ü" * 9000 + " end")))
    assert report.failure is not None
    assert (report.failure.message[:6], report.failure.message[-4:]) == ("begin ", " end")


def test_sigterm_interrupts_the_stage(machine: Machine) -> None:
    """The signal of a drained pod reaches the stage, which ends with Interrupted."""

    def stage(context: StageContext) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        context.stop.check()
        raise AssertionError("check() has to raise")

    code, report = machine.run(stage)
    assert code == 75
    assert report.failure is not None
    assert report.failure.reason == Reason.INTERRUPTED


def test_a_stage_that_does_not_stop_in_time_exits(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process exits with 75 before the kubelet kills it, whatever the stage is waiting for."""
    ended = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setenv(ENV_GRACE_SECONDS, "0")

    def stage(context: StageContext) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended.wait(timeout=10)
        report = json.loads((machine.folder / "report.json").read_text())
        assert report["failure"]["reason"] == "Interrupted"
        return FACTS, True

    machine.run(stage)
    assert codes == [75]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "top level"),
        ("{", "top level"),
        ('{"namespace": "a", "name": "b", "runId": "c", "spec": {"nonsense": 1}}', "spec"),
    ],
)
def test_an_invalid_run_spec_is_refused(machine: Machine, text: str, named: str) -> None:
    """The message has the position in the RunSpec."""
    machine.run_spec.write_text(text)
    code, report = machine.run(lambda _context: (FACTS, True))
    assert code == 64
    assert report.failure is not None
    assert named in report.failure.message


def test_models_are_loaded_from_the_mounted_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub uses the volume. Without a claim or a volume, nothing changes."""
    volume = machine.folder / "models"
    monkeypatch.setattr(runner, "MODEL_CACHE_PATH", str(volume))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    seen: list[str | None] = []

    def stage(_context: StageContext) -> object:
        seen.append(os.environ.get("HF_HUB_CACHE"))
        return FACTS, True

    spec = json.loads(machine.run_spec.read_text())
    machine.run(stage)
    spec["spec"]["compute"] = {**spec["spec"].get("compute", {}), "modelCache": {"claimName": "models"}}
    machine.run_spec.write_text(json.dumps(spec))
    machine.run(stage)
    volume.mkdir()
    machine.run(stage)
    assert seen == [None, None, str(volume)]


def test_a_missing_run_spec_is_reported(machine: Machine) -> None:
    """A mistyped path gives a clear message."""
    machine.run_spec.unlink()
    code, report = machine.run(lambda _context: (FACTS, True))
    assert code == 64
    assert report.failure is not None
    assert str(machine.run_spec) in report.failure.message


def test_a_self_hosted_hub_is_used_without_xet(machine: Machine) -> None:
    """The libraries use the Hub of the spec, and no protocol that only the public Hub supports."""
    spec = json.loads(machine.run_spec.read_text())
    spec["spec"]["hub"] = {"endpoint": "http://hub.example.com/"}
    machine.run_spec.write_text(json.dumps(spec))
    seen: dict[str, str] = {}

    def stage(context: StageContext) -> object:
        seen.update(os.environ)
        return FACTS, True

    machine.run(stage)
    assert seen["HF_ENDPOINT"] == "http://hub.example.com"
    assert seen["HF_HUB_DISABLE_XET"] == "1"
    assert seen["HF_HOME"] == str(machine.folder / "work" / "hub")
    assert int(seen["OMP_NUM_THREADS"]) >= 1

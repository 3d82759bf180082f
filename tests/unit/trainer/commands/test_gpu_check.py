"""How the parts of the GPU check are run and reported. The parts themselves are tested in tests/learn."""

import json
from pathlib import Path

import pytest
from tunemill_api.failures import ExitCode
from tunemill_trainer.__main__ import main
from tunemill_trainer.gpu_check import command
from tunemill_trainer.gpu_check.command import Part, Result, run_parts, table
from tunemill_trainer.gpu_check.shapes import SHAPES


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module whose parts do what their settings say."""
    (tmp_path / "a_part.py").write_text(
        "import json, os, sys, time\n"
        "asked = json.loads(sys.argv[1])\n"
        "print('something else')\n"
        "time.sleep(asked.get('sleeps', 0))\n"
        "os.abort() if asked.get('crashes') else None\n"
        "print(json.dumps(asked['answer'] | {'figures': {'folder': asked['folder']}}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    return "a_part"


def answers(status: str, reason: str = "") -> dict:
    """The settings of a part with this outcome."""
    return {"answer": {"status": status, "reason": reason}}


def test_a_failed_part_does_not_end_the_check(tmp_path: Path, module: str) -> None:
    """After a crash, a timeout or a skipped part, the next one runs."""
    parts = [
        Part("crashes", 60, {"crashes": True}, module),
        Part("sleeps", 1, {"sleeps": 600}, module),
        Part("skips", 60, answers("skipped", "trl is not installed"), module),
        Part("passes", 60, answers("passed"), module),
    ]
    results = list(run_parts(parts, 300, tmp_path / "work"))
    assert [(result.name, result.status) for result in results] == [
        ("crashes", "failed"),
        ("sleeps", "failed"),
        ("skips", "skipped"),
        ("passes", "passed"),
    ]
    assert "code -6" in results[0].reason
    assert "not finished after 1 s" in results[1].reason
    assert results[2].reason == "trl is not installed"


def test_parts_without_time_left_are_skipped_with_a_reason(tmp_path: Path, module: str) -> None:
    """The check ends in time."""
    (result,) = run_parts([Part("long", 100, answers("passed"), module)], 10, tmp_path)
    assert (result.status, result.reason) == ("skipped", "no time left: it may take up to 100 s")


def test_reports_are_written_and_a_failure_sets_the_exit_code(tmp_path: Path, module: str) -> None:
    """Skipped parts are not failures."""
    passes, skips, fails = (Part(end, 60, answers(end, "x"), module) for end in ("passed", "skipped", "failed"))
    report, markdown = tmp_path / "gpu" / "report.json", tmp_path / "gpu" / "table.md"
    assert command.check([passes, skips], 5, tmp_path / "work", report, markdown) == ExitCode.DONE
    assert command.check([passes, fails], 5, tmp_path / "work", report, markdown) == ExitCode.INTERNAL_ERROR
    assert [each["status"] for each in json.loads(report.read_text())["results"]] == ["passed", "failed"]
    assert markdown.exists()


def test_a_missing_gpu_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is that of a stage on a broken node."""
    monkeypatch.setattr(command, "without_gpu", lambda: "no driver")
    assert main(["gpu-check"]) == ExitCode.NODE_BROKEN
    assert "no GPU can be used: no driver" in capsys.readouterr().err


def test_the_table_has_the_measurements_and_the_reasons_for_missing_ones() -> None:
    """For docs/performance.md."""
    shown = table(
        [
            Result("environment", "passed", figures={"gpu": "NVIDIA H200", "torch": "2.15.0"}),
            Result("speed, gemma-2-2b LoRA BF16", "passed", figures={"tokensPerSecond": 12345.6, "utilisation": 0.412}),
            Result("speed, llama-3.1-8b LoRA BF16", "skipped", "no time left"),
            Result("resume after SIGTERM", "passed"),
        ]
    ).splitlines()
    assert shown[0].startswith("NVIDIA H200, torch 2.15.0")
    assert shown[4].startswith("| gemma-2-2b LoRA BF16 | 12,346 | 41 % |")
    assert "skipped: no time left" in shown[5]
    assert len(shown) == 6


def test_every_shape_of_the_data_is_measured() -> None:
    """With every method, quantization and precision."""
    measured = [part.settings for part in [*command.small_parts("cuda", only_small=False), *command.full_parts()]]
    assert {part.get("shape") for part in measured} - {None} == set(SHAPES)
    assert {part.get("method") for part in measured} - {None} == {"LoRA", "AdaLoRA", "IA3", "Full"}
    assert {part.get("quantization") for part in measured} - {None} == {"None", "NF4", "Int8"}
    assert {part.get("precision") for part in measured} - {None} == {"Auto", "BF16", "FP16", "FP32"}

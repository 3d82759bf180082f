"""What `make test` says at its end about the time that layers and tests took."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timing
from tunemill_dev import layers
from tunemill_dev.layers import Layer, table


def a_make(folder: Path, script: str) -> str:
    """Return a program that stands in for make; `$1` is the target."""
    program = folder / "make"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_the_first_group_ends_with_the_layer_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing else runs; the exit status is that of the layer, and its output has its name."""
    monkeypatch.chdir(tmp_path)
    make = a_make(tmp_path, 'echo "$1" >> ran; echo "checking $1"; test "$1" != types || exit 2')
    assert layers.main(make, ["lint", "types", "contracts", "--", "test-kube", "--", "test-unit"]) == 2
    assert (tmp_path / "ran").read_text() == "lint\ntypes\n"
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == ["lint: checking lint", "types: checking types"]
    assert [line.split("|")[1].strip() for line in printed.out.splitlines() if line.startswith("|")][:5] == [
        "layer",
        "---",
        "lint",
        "types",
        "in all",
    ]
    assert printed.err == "\ntypes failed\n"


def test_the_other_groups_run_side_by_side_and_to_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each waits for a layer of the other one; a failure ends neither. The third group has a lower priority."""
    monkeypatch.chdir(tmp_path)
    script = """nice > "$1"
    case "$1" in
      test-kube) until test -e test-unit; do sleep 0.01; done; exit 3;;
      test-unit) until test -e test-kube; do sleep 0.01; done;;
      test-learn) exit 2;;
    esac"""
    names = ["lint", "--", "test-kube", "test-e2e", "--", "test-unit", "test-learn", "test-serving"]
    assert layers.main(a_make(tmp_path, script), names) == 3
    assert capsys.readouterr().err == "\ntest-kube, test-learn failed\n"
    priorities = {name: int((tmp_path / name).read_text()) for name in names if name != "--"}
    assert priorities["test-e2e"] == priorities["lint"] < priorities["test-unit"] == priorities["test-serving"]


def test_the_table_has_minutes_by_the_clock_and_by_the_processor() -> None:
    """Layers that ran side by side took less than their sum."""
    assert table([Layer("lint", 60, 30), Layer("types", 90, 96)], 100).splitlines()[2:] == [
        "| lint | 1.0 | 0.5 |",
        "| types | 1.5 | 1.6 |",
        "| in all | 1.7 | 2.1 |",
    ]


def test_the_slowest_tests_of_this_run_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test's time is that of all its phases; what an earlier run noted is not shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "TIMES", tmp_path / layers.TIMES)
    noted(("old", 9.0, 1.0))
    make = a_make(tmp_path, f"cp {tmp_path / 'new'} {layers.TIMES}")
    layers.TIMES.rename(tmp_path / "kept")
    noted(("a", 0.2, 0.1), ("b", 1.0, 0.5), ("b", 0.5, 2.0))
    layers.TIMES.rename(tmp_path / "new")
    (tmp_path / "kept").rename(layers.TIMES)
    assert layers.main(make, ["test-unit"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "`" in line]
    assert lines == ["| 1.5 | 2.5 | `b` |", "| 0.2 | 0.1 | `a` |"]


def noted(*phases: tuple[str, float, float]) -> None:
    """Let the plugin note a run of tests with these phases: name, seconds, processor seconds."""
    times = timing.Times(SimpleNamespace(args=["tests/unit"]))
    for name, seconds, processor in phases:
        times.pytest_runtest_logreport(SimpleNamespace(nodeid=name, duration=seconds, processor=processor))
    times.pytest_unconfigure()

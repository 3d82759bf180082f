"""The summary of `make test` with the time of layers and tests."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import timing
from tunemill_dev import layers
from tunemill_dev.layers import Layer, table


def a_make(folder: Path, script: str) -> str:
    """Return a replacement for make; `$1` is the target."""
    program = folder / "make"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_failed_layer_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is that of the layer, and all executed layers are shown."""
    monkeypatch.chdir(tmp_path)
    make = a_make(tmp_path, 'echo "$1" >> ran; test "$1" != types || exit 2')
    assert layers.main(make, ["lint", "types", "contracts", "--", "test-unit"]) == 2
    assert (tmp_path / "ran").read_text() == "lint\ntypes\n"
    printed = capsys.readouterr()
    assert [line.split("|")[1].strip() for line in printed.out.splitlines() if line.startswith("|")][:5] == [
        "layer",
        "---",
        "lint",
        "types",
        "in all",
    ]
    assert printed.err == "\nfailed: types\n"


def test_every_failed_layer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is that of the first."""
    monkeypatch.chdir(tmp_path)
    make = a_make(tmp_path, 'echo "$1" >> ran; case "$1" in test-unit) exit 3;; test-e2e) exit 2;; esac')
    assert layers.main(make, ["lint", "--", "test-unit", "test-learn", "test-e2e"]) == 3
    assert (tmp_path / "ran").read_text() == "lint\ntest-unit\ntest-learn\ntest-e2e\n"
    assert capsys.readouterr().err == "\nfailed: test-unit, test-e2e\n"


def test_the_table_shows_minutes_and_their_sum() -> None:
    """Wall time and CPU time."""
    assert table([Layer("lint", 60, 30), Layer("types", 90, 96)]).splitlines()[2:] == [
        "| lint | 1.0 | 0.5 |",
        "| types | 1.5 | 1.6 |",
        "| in all | 2.5 | 2.1 |",
    ]


def test_the_slowest_tests_of_this_run_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A test's time is that of all its phases; an earlier run is not shown."""
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
    """Record a run of tests with these phases: name, seconds, CPU seconds."""
    times = timing.Times(SimpleNamespace(args=["tests/unit"]))
    for name, seconds, processor in phases:
        times.pytest_runtest_logreport(SimpleNamespace(nodeid=name, duration=seconds, processor=processor))
    times.pytest_unconfigure()

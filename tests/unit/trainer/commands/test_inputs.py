"""Rows, replies and tools read from pipes and standard input."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from trainer.data.building import openai_row
from tunemill_trainer.__main__ import tunemill

ROW = json.dumps(openai_row() | {"id": "a"})
OUTPUT = json.dumps({"id": "a", "output": "No."})


@pytest.fixture
def stdin(monkeypatch):
    """Replace standard input with this content."""

    def give(text: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return "-"

    return give


@pytest.fixture
def pipe():
    """Return the path of a pipe with this content, as a shell passes <(…)."""
    opened = []

    def give(text: str) -> str:
        reading, writing = os.pipe()
        opened.append(reading)
        with os.fdopen(writing, "w") as end:
            end.write(text)
        return f"/dev/fd/{reading}"

    yield give
    for reading in opened:
        os.close(reading)


def test_lint_and_show_read_standard_input(stdin, capsys):
    """Findings name the file stdin."""
    assert tunemill(["lint", stdin(ROW + "\n{broken\n"), "--json"]) == 65
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["file"], finding["line"]) == ("stdin", 2)
    assert tunemill(["show", stdin(ROW), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == "stdin"


@pytest.mark.parametrize("outputs", ["pipe", "stdin"])
def test_score_reads_pipes(outputs, pipe, stdin, capsys):
    """Rows and replies; the rows are needed twice, but a pipe can be read once."""
    given = pipe(OUTPUT) if outputs == "pipe" else stdin(OUTPUT)
    assert tunemill(["score", "--rows", pipe(ROW), "--outputs", given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["exact_match"] is False


def test_tools_can_be_read_from_a_pipe(pipe, capsys):
    """It is read once."""
    row = openai_row()
    tools = json.dumps(row.pop("tools"))
    assert tunemill(["lint", pipe(json.dumps(row)), "--tools", pipe(tools), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["summary"]["usableRows"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["lint", "-", "-"],
        ["lint", "x", "--evaluation", "-", "--tools", "-"],
        ["show", "-", "--tools", "-"],
        ["score", "--rows", "-", "--outputs", "-"],
    ],
)
def test_standard_input_can_be_used_for_one_input_only(arguments, capsys):
    """A second reader would get nothing."""
    assert tunemill(arguments) == 64
    err = capsys.readouterr().err
    assert "is given 2 times" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["lint", "show", "score"])
@pytest.mark.parametrize("name", ["missing.json", "folder", "latin1.json", "no-tools.json"])
def test_an_invalid_file_of_tools_is_named(command, name, tmp_path, capsys):
    """With its path and a remedy, in one line."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin1.json").write_bytes(b'["\xe9"]')
    (tmp_path / "no-tools.json").write_text("[]")
    rows, outputs = tmp_path / "rows.jsonl", tmp_path / "outputs.jsonl"
    rows.write_text(ROW)
    outputs.write_text(OUTPUT)
    files = ["--rows", str(rows), "--outputs", str(outputs)] if command == "score" else [str(rows)]
    code = tunemill([command, *files, "--tools", str(tmp_path / name)])
    err = capsys.readouterr().err
    assert code == (64 if name == "no-tools.json" else 66)
    assert err.startswith(f"tunemill {command}: ")
    assert str(Path(name)) in err
    assert err.rstrip().endswith((".", "…"))
    assert err.count("\n") == 1

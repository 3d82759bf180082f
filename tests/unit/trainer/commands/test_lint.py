"""`tunemill lint`: the findings of prepare, on a laptop."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer.chat.speakers import GEMMA, a_speaker
from trainer.data.building import WEATHER, a_file, openai_row
from tunemill_trainer.__main__ import main

SIMPLE = {"user_content": "Weather in Rome?", "tool_name": "get_weather", "tool_arguments": {"city": "Rome"}}


@pytest.fixture
def lint(tmp_path, capsys, monkeypatch):
    """Runs the command in a folder; returns the exit code and its JSON output."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["lint", *map(str, arguments), "--json"])
        printed = capsys.readouterr().out
        return code, json.loads(printed) if printed else None

    return run


def put(name, rows, **options):
    """Write a file into the current folder."""
    from pathlib import Path

    a_file(Path.cwd(), rows, name, **options).path.rename(name)
    return name


def rules(result):
    """(file, line, rule) of every finding."""
    return [(found["file"], found["line"], found["rule"]) for found in result["findings"]]


def test_valid_rows_exit_with_0(lint):
    """No findings."""
    code, result = lint(put("calls.jsonl", [openai_row(str(number)) for number in range(3)]))
    assert (code, result["findings"]) == (0, [])
    assert result["summary"] == {
        "files": {"calls.jsonl": "OpenAI"},
        "rows": 3,
        "usableRows": 3,
        "calls": 3,
        "errors": 0,
        "warnings": 0,
        "rules": {},
    }


def test_errors_exit_with_65_and_warnings_with_0(lint):
    """Each finding has file, line, rule, severity, message and remedy."""
    wrong = put("wrong.jsonl", [openai_row("a"), openai_row("b", town="Rome")])
    code, result = lint(wrong)
    assert code == 65
    (extra, missing) = result["findings"]
    assert extra == {
        "file": "wrong.jsonl",
        "line": 2,
        "rule": "extra-argument",
        "field": "turn 2, call 1",
        "severity": "error",
        "message": "get_weather has the argument town, which its schema does not declare",
        "remedy": "Declare the argument in the tool's schema, or remove it from the call.",
    }
    assert missing["rule"] == "missing-argument"
    code, result = lint(put("twice.jsonl", [openai_row("a"), openai_row("a")]))
    assert (code, rules(result)) == (0, [("twice.jsonl", 2, "duplicate")])
    assert result["findings"][0]["severity"] == "warning"


def test_files_of_all_types_have_their_own_format(lint):
    """Lines, lists, gzip and tables; places are lines, elements and rows, counted from 1."""
    pq.write_table(pa.Table.from_pylist([openai_row("t1"), openai_row("t2", days=3)]), "table.parquet")
    files = [
        put("calls.json", json.dumps([openai_row("l"), openai_row("m", city=7)])),
        put("calls.jsonl.gz", [{"conversations": [{"from": "human", "value": "x"}]}], zipped=True),
        "table.parquet",
    ]
    code, result = lint(*files)
    assert code == 65
    assert result["summary"]["files"] == {files[0]: "OpenAI", files[1]: "ShareGPT", files[2]: "OpenAI"}
    assert rules(result) == [
        ("calls.json", 2, "wrong-argument"),
        ("calls.jsonl.gz", 1, "not-supervised"),
        ("table.parquet", 2, "missing-argument"),
    ]


def test_nulls_filled_in_by_a_table_are_ignored(lint):
    """Arrow gives every call all arguments, nested ones too."""
    parameters = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "options": {"type": "object", "properties": {"unit": {"type": "string"}, "wind": {"type": "boolean"}}},
        },
    }
    tools = [{"function": WEATHER | {"parameters": parameters}}]
    arguments = [{"city": "Rome"}, {"days": 2}, {"options": {"unit": "C"}}, {"options": {"wind": True}}]
    rows = []
    for number, given in enumerate(arguments):
        row = openai_row(str(number))
        row["messages"][1]["tool_calls"][0]["function"]["arguments"] = given
        rows.append(row | {"tools": json.dumps(tools)})
    pq.write_table(pa.Table.from_pylist(rows), "table.parquet")
    assert lint("table.parquet") == lint("table.parquet")
    assert lint("table.parquet")[0] == 0


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", ("x.json", 1, "format")),
        ('{"prompt": "a"}\n', ("x.json", 1, "format")),
        ("hello\n", ("x.json", 1, "not-json")),
        ('[{"messages": []}, {', ("x.json", 2, "not-json")),
        (b"PAR1 and no table", ("x.json", 1, "not-json")),
        (b"\x1f\x8b and no gzip", ("x.json", 1, "not-json")),
    ],
)
def test_an_unreadable_file_is_a_finding(lint, content, found):
    """A fatal finding is reported like the others, and the other files are checked."""
    good = put("good.jsonl", [openai_row()])
    code, result = lint(put("x.json", content), good)
    assert code == 65
    assert found in rules(result)
    assert result["summary"]["files"]["good.jsonl"] == "OpenAI"


def test_tools_can_be_given_in_a_file(lint):
    """Rows without tools use them; without the file their calls are unknown."""
    rows = put("simple.jsonl", [SIMPLE])
    assert rules(lint(rows)[1]) == [("simple.jsonl", 1, "unknown-tool")]
    assert lint(rows, "--tools", put("tools.json", json.dumps([WEATHER])))[0] == 0
    assert lint(rows, "--tools", put("broken.json", '[{"nome": "f"}]')) == (64, None)


def test_rows_must_have_the_format_of_the_option(lint):
    """Rows of another format are invalid. Upper and lower case are equal in the option."""
    rows = put("simple.jsonl", [SIMPLE])
    assert rules(lint(rows, "--format", "xlam")[1]) == [("simple.jsonl", 1, "format")]


def test_held_out_rows_must_not_be_trained_on(lint):
    """The training row is named, with the held-out row of the same request."""
    train, held_out = put("train.jsonl", [openai_row("A  b"), openai_row("c")]), put("eval.jsonl", [openai_row("a B")])
    code, result = lint(train, "--evaluation", held_out)
    assert (code, rules(result)) == (0, [("train.jsonl", 1, "leaked")])
    assert "eval.jsonl line 1" in result["findings"][0]["message"]


def test_splits_share_no_requests(lint):
    """A validation row with the request of a held-out row is named, and a training row with that of either."""
    train = put("train.jsonl", [openai_row("a"), openai_row("b"), openai_row("c")])
    held_out, validation = put("eval.jsonl", [openai_row("A")]), put("dev.jsonl", [openai_row("B"), openai_row("a")])
    code, result = lint(train, "--evaluation", held_out, "--validation", validation)
    assert code == 0
    found = {(each["file"], each["line"]): each["message"] for each in result["findings"]}
    assert found.keys() == {("train.jsonl", 1), ("train.jsonl", 2), ("dev.jsonl", 2)}
    assert "the validation row at dev.jsonl line 1" in found["train.jsonl", 2]
    assert "the held-out row at eval.jsonl line 1" in found["dev.jsonl", 2]


def test_the_threshold_for_rarely_called_tools_can_be_set(lint):
    """Tools below the ratio are named; a tool without calls always."""
    rows = [openai_row(str(number)) for number in range(25)]
    for row in rows:
        row["tools"].append({"name": "never", "parameters": {}})
    file = put("calls.jsonl", rows)
    assert rules(lint(file)[1]) == [("calls.jsonl", 1, "uncalled-tool")]
    rows[0]["messages"][1]["tool_calls"][0]["function"] = {"name": "never", "arguments": "{}"}
    file = put("calls.jsonl", rows)
    assert rules(lint(file)[1]) == [("calls.jsonl", 1, "imbalance")]
    assert lint(file, "--max-tool-ratio", 100)[1]["findings"] == []


def test_lengths_and_rendering_are_checked_with_a_tokenizer(lint, tmp_path):
    """It finds rows that are too long and text that looks like a marker."""
    a_speaker(GEMMA).save_pretrained(tmp_path / "base")
    rows = [openai_row("short"), openai_row("long " * 1000), openai_row("x", city="<end_of_turn>")]
    file = put("calls.jsonl", rows)
    assert lint(file)[1]["findings"] == []
    code, result = lint(file, "--tokenizer", tmp_path / "base", "--max-length", 2000)
    assert (code, rules(result)) == (65, [("calls.jsonl", 2, "overlong"), ("calls.jsonl", 3, "marker-in-text")])
    assert result["summary"]["usableRows"] == 1


def test_text_output(tmp_path, capsys, monkeypatch):
    """By file and rule, each remedy once. A missing file is reported in one line."""
    monkeypatch.chdir(tmp_path)
    file = put("calls.jsonl", [openai_row(str(number), town="x") for number in range(30)])
    assert main(["lint", file]) == 65
    printed = capsys.readouterr().out
    assert "  error: missing-argument (30)\n    line 1: get_weather: 'city' is a required property\n" in printed
    assert "    … and 10 more; --json lists all\n    → Add the argument to the call" in printed
    assert printed.endswith("30 rows, 0 usable with 0 calls; 60 errors, 0 warnings\n")
    assert main(["lint", "absent.jsonl"]) == 66
    assert "absent.jsonl could not be read: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["lint", "show"])
def test_lint_imports_no_heavy_libraries(tmp_path, command):
    """Neither torch, Transformers, nor clients of S3 and the Hub."""
    file = a_file(tmp_path, [openai_row()])
    code = (
        "import sys; from tunemill_trainer.__main__ import main; main(sys.argv[1:]); "
        "print([name for name in ('torch', 'transformers', 'boto3', 'huggingface_hub') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, command, str(file.path)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.endswith("[]\n")


def trainer(*arguments, **options):
    """Run the command in a separate process and return it when it has ended."""
    command = [sys.executable, "-m", "tunemill_trainer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


def test_a_pipe_is_read(lint):
    """A pipe can be read only once, and the format is detected first."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(json.dumps(openai_row()).encode())
    code, result = lint(f"/dev/fd/{reading}")
    os.close(reading)
    assert (code, result["summary"]["usableRows"]) == (0, 1)


def test_a_missing_file_does_not_hide_findings_of_others(lint, tmp_path):
    """The command exits with 66 and the file's name, after the findings of the others."""
    code, result = lint(put("wrong.jsonl", [openai_row("b", town="Rome")]), "missing.jsonl")
    assert code == 66
    assert result["summary"]["errors"] == 2


def test_a_file_name_with_invalid_utf_8_is_printed(tmp_path):
    """File systems accept any bytes in a name."""
    path = tmp_path / os.fsdecode(b"rows\xff.jsonl")
    path.write_text(json.dumps(openai_row()))
    assert b"rows\\xff.jsonl" in trainer("lint", path).stdout


def test_a_length_without_a_tokenizer_is_refused(lint, capsys):
    """The option would have no effect."""
    assert lint(put("calls.jsonl", [openai_row()]), "--max-length", 5) == (64, None)


@pytest.mark.parametrize("base", ["./no-such-folder", "/no/such", "models/tiny/"])
def test_a_missing_tokenizer_folder_is_reported(lint, base, monkeypatch):
    """A path that cannot be an id is not searched on the Hub."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert lint(put("calls.jsonl", [openai_row()]), "--tokenizer", base) == (66, None)


def test_a_character_missing_in_the_console_encoding_is_escaped(tmp_path):
    """The output continues."""
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(openai_row("a", town="x")))
    ended = trainer("lint", path, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 65
    assert b"\\u2192 Add the argument" in ended.stdout
    assert b"Traceback" not in ended.stderr


def test_a_closed_output_pipe_ends_the_command_quietly(tmp_path):
    """As with head."""
    path = tmp_path / "calls.jsonl"
    path.write_text("".join(json.dumps(openai_row(str(number), town="x")) + "\n" for number in range(500)))
    command = [sys.executable, "-m", "tunemill_trainer", "lint", path, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"{\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 65

"""`tunemill score`: a report from a file of rows and a file of replies."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tunemill_trainer.__main__ import main

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
OSLO = {"name": "weather", "arguments": {"city": "Oslo"}}

Scored = Callable[..., tuple[int, str, str]]


def a_row(identifier: Any, *calls: dict, **fields: Any) -> dict:
    """An OpenAI row whose expected answer has these calls, or is a greeting."""
    answer: dict[str, Any] = {"role": "assistant", "content": "Hello!"}
    if calls:
        answer = {"role": "assistant", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    return {"id": identifier, "messages": [{"role": "user", "content": "?"}, answer], "tools": [WEATHER], **fields}


def says(*calls: dict) -> str:
    """A reply with these calls in Hermes format."""
    return "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls) or "Hello!"


def written(path: Path, lines: Iterable[Any]) -> Path:
    """A JSONL file."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Scored:
    """Run the command on rows and outputs; returns exit code, standard output and standard error."""

    def run(rows: Iterable[Any], outputs: Iterable[Any], *options: str) -> tuple[int, str, str]:
        files = [
            "--rows",
            written(tmp_path / "rows.jsonl", rows),
            "--outputs",
            written(tmp_path / "outputs.jsonl", outputs),
        ]
        code = main(["score", *map(str, files), *options])
        ended = capsys.readouterr()
        return code, ended.out, ended.err

    return run


def test_rows_are_judged_one_by_one(scored: Scored):
    """In the order of the rows, whatever the order of the replies, with the reason of each mistake."""
    rows = [a_row("a", OSLO), a_row("b", OSLO), a_row("c"), a_row(4, OSLO, OSLO)]
    outputs = [
        {"id": 4, "output": says(OSLO)},
        {"id": "c", "output": "Hi."},
        {"id": "b", "output": says({"name": "weather", "arguments": {"days": 1, "city": "oslo"}})},
        {"id": "a", "output": says(OSLO)},
    ]
    code, out, _ = scored(rows, outputs, "--json")
    report = json.loads(out)
    assert code == 0
    assert [list(row.values()) for row in report["rows"]] == [
        ["a", True, True, True, None],
        ["b", True, False, True, 'weather.city: expected "Oslo", found "oslo"'],
        ["c", True, True, True, None],
        [4, False, False, False, "expected a call to weather, weather, found weather"],
    ]
    metrics = report["metrics"]
    assert [round(metrics[name], 3) for name in ("tool_name_accuracy", "exact_match", "ast_match")] == [
        0.667,
        0.333,
        0.667,
    ]
    assert (metrics["abstention_accuracy"], metrics["parallel_accuracy"], metrics["finished_rate"]) == (1.0, 0.0, None)
    assert report["formats"] == {"rows": "OpenAI", "replies": "hermes"}
    assert set(report["slices"]) == {"no_call", "single_call", "multi_call"}


def test_text_output_has_tables(scored: Scored):
    """Metrics with intervals, tools, and the first mistakes with their reasons."""
    code, out, _ = scored([a_row("a", OSLO), a_row("b", OSLO)], [{"id": i, "output": says(OSLO)} for i in "ab"])
    assert code == 0
    assert "2 rows in OpenAI format, replies in hermes format" in out
    assert any(
        line.split() == ["exact_match", "100.0", "%", "34.2", "%", "…", "100.0", "%", "2"] for line in out.splitlines()
    )
    _, out, _ = scored([a_row("a", OSLO)], [{"id": "a", "output": "No."}])
    assert "missed_call  expected a call to weather, found none" in out


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "system", "value": f"<tools>{json.dumps([WEATHER])}</tools>"},
                {"from": "human", "value": "?"},
                {"from": "gpt", "value": says(OSLO)},
            ]
        },
        {"user_content": "?", "tool_name": "weather", "tool_arguments": json.dumps(OSLO["arguments"])},
        {"query": "?", "answers": json.dumps([OSLO]), "tools": json.dumps([WEATHER["function"]])},
    ],
)
def test_rows_can_have_any_format(scored: Scored, tmp_path: Path, row: dict):
    """The id is next to the fields of the format; rows without tools use those of a file."""
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([WEATHER]))
    right = {"name": "weather", "arguments": {"city": "OSLO", "days": 1}}
    code, out, err = scored([{"id": 1, **row}], [{"id": 1, "output": says(right)}], "--tools", str(tools), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"][0]["ast_match"] is True


def test_the_last_assistant_message_is_the_expected_answer(scored: Scored):
    """Earlier messages are history, later ones are ignored."""
    row = a_row("a", OSLO)
    call = {"id": "c1", "type": "function", "function": OSLO}
    row["messages"] = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks"},
    ]
    report = json.loads(scored([row], [{"id": "a", "output": "Rain."}], "--json")[1])
    assert report["cases"]["abstention_accuracy"] == 1
    assert set(report["slices"]) == {"no_call", "multi_turn"}


@pytest.mark.parametrize(
    ("output", "options", "reply_format"),
    [
        ('{"name": "weather", "parameters": {"city": "Oslo"}}', [], "llama3_json"),
        ('[weather(city="Oslo")]', [], "pythonic"),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]</s>', [], "mistral"),
        ("<start_function_call>call:weather{city:<escape>Oslo<escape>}<end_function_call>", [], "functiongemma"),
        ('<|python_start|>[weather(city="Oslo")]<|python_end|><|eot|>', [], "llama4_pythonic"),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]\n\nI will look.</s>', [], "mistral"),
        ('<think>look</think>\n\n[weather(city="Oslo")]<|eot_id|>', [], "pythonic"),
        ("<tool_call><function=weather><parameter=city>Oslo</parameter></function></tool_call>", [], "qwen3_coder"),
        ("<tool_call>weather\n<arg_key>city</arg_key><arg_value>Oslo</arg_value></tool_call>", [], "glm45"),
        (says(OSLO), ["--reply-format", "qwen3_json"], "hermes"),
        (json.dumps(OSLO) + "<|eot_id|>\n<|endoftext|>", [], "json"),
        (f"Sure: {json.dumps(OSLO)}", ["--reply-format", "llama3_json"], "llama3_json"),
    ],
)
def test_replies_can_have_any_call_format(scored: Scored, output: str, options: list[str], reply_format: str):
    """It is detected or set by an option. End markers are not part of a call."""
    report = json.loads(scored([a_row("a", OSLO)], [{"id": "a", "output": output}], "--json", *options)[1])
    assert report["rows"][0]["exact_match"] is True
    assert report["formats"]["replies"] == reply_format


def test_an_unknown_call_format_gets_no_metrics(scored: Scored):
    """Unknown marks around a tool name: 0 % would be wrong."""
    outputs = [{"id": "a", "output": f"<action>{json.dumps(OSLO)}</action>"}]
    code, out, _ = scored([a_row("a", OSLO)], outputs, "--json")
    report = json.loads(out)
    assert (code, report["formats"]["replies"], report["metrics"]) == (0, "unknown", {})
    assert report["rows"][0]["exact_match"] is None
    assert "format of the replies is unknown" in scored([a_row("a", OSLO)], outputs)[1]
    assert json.loads(scored([a_row("a", OSLO)], outputs, "--json", "--reply-format", "hermes")[1])["metrics"]


def test_original_tool_names_are_accepted(scored: Scored):
    """Names are changed for servers; a model that was given the original one is not wrong."""
    call = {"name": "Market Trends API", "arguments": {"kind": "stock"}}
    report = json.loads(scored([a_row("a", call)], [{"id": "a", "output": says(call)}], "--json")[1])
    assert report["rows"][0]["exact_match"] is True


def test_end_markers_show_which_replies_finished(scored: Scored):
    """If one reply has a marker, those without were cut off. `finished` is explicit; otherwise it is unknown."""
    rows = [a_row(i, OSLO) for i in range(3)]
    outputs = [
        {"id": 0, "output": says(OSLO) + "<|im_end|>"},
        {"id": 1, "output": says(OSLO)},
        {"id": 2, "output": says(OSLO), "finished": True},
    ]
    report = json.loads(scored(rows, outputs, "--json")[1])
    assert (round(report["metrics"]["finished_rate"], 3), report["cases"]["finished_rate"]) == (0.667, 3)
    report = json.loads(scored(rows[1:], outputs[1:], "--json")[1])
    assert (report["metrics"]["finished_rate"], report["cases"]["finished_rate"]) == (1.0, 1)


ROW, OUTPUT = a_row("a", OSLO), {"id": "a", "output": "No."}


@pytest.mark.parametrize(
    ("rows", "outputs", "message"),
    [
        ([ROW, a_row("b")], [OUTPUT], "found none for 1 of 2: b ("),
        ([ROW], [OUTPUT, {"id": "b", "output": ""}], "outputs.jsonl line 2: no row has the id b"),
        ([ROW], [OUTPUT, OUTPUT], "line 1 has the same id a"),
        ([ROW, ROW], [OUTPUT], "line 1 has the same id a"),
        ([a_row(1), a_row("1")], [OUTPUT], "line 1 has the same id 1"),
        ([{**ROW, "id": None}], [OUTPUT], "rows.jsonl line 1: expected `id` to be a string or an integer, found none"),
        ([{**ROW, "id": True}], [OUTPUT], "rows.jsonl line 1: expected `id` to be a string or an integer, found True"),
        ([ROW], [{"output": ""}], "outputs.jsonl line 1: expected `id` to be"),
        ([ROW], [{"id": "a"}], "outputs.jsonl line 1: expected `output` to be a string, found none"),
        ([ROW], [{"id": "a", "output": {}}], "outputs.jsonl line 1: expected `output` to be a string, found {}"),
        ([ROW], [{**OUTPUT, "finished": "yes"}], "outputs.jsonl line 1: expected `finished` to be true or false"),
        ([ROW], ["", "{broken"], "outputs.jsonl line 2: not JSON at column 2"),
        (["7"], [OUTPUT], "rows.jsonl line 1: expected a JSON object, found a number"),
        ([ROW, "{broken"], [OUTPUT], "rows.jsonl line 2: not JSON"),
        ([], [OUTPUT], "rows.jsonl, found none"),
        ([{"id": 1, "messages": [{"role": "user", "content": "?"}]}], [OUTPUT], "expected an assistant message"),
        ([{"id": 1, "messages": []}], [OUTPUT], "rows.jsonl line 1: expected a field `messages`"),
        ([{"id": 1, "said": "?"}], [OUTPUT], "found the fields: id, said"),
    ],
)
def test_mismatched_files_are_rejected(scored: Scored, rows: list, outputs: list, message: str):
    """With exit code 65, the place and a remedy, in one line without a traceback."""
    code, out, err = scored(rows, outputs, "--json")
    assert (code, out) == (65, "")
    assert err.startswith("tunemill score: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With exit code 66."""
    assert main(["score", "--rows", str(tmp_path / "no.jsonl"), "--outputs", "no"]) == 66
    assert "no.jsonl could not be read: No such file or directory. Correct the path." in capsys.readouterr().err


def test_a_gzipped_list_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Rows and replies can have every file type of data."""
    rows, outputs = tmp_path / "rows.json.gz", tmp_path / "outputs.json"
    rows.write_bytes(gzip.compress(json.dumps([ROW]).encode()))
    outputs.write_text(json.dumps([{"id": "a", "output": says(OSLO)}]))
    assert main(["score", "--rows", str(rows), "--outputs", str(outputs), "--format", "openai", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["exact_match"] == 1.0


def test_a_closed_output_pipe_ends_the_output_quietly(tmp_path: Path):
    """For example `| head`."""
    rows = written(tmp_path / "r", [a_row(number, OSLO) for number in range(3000)])
    outputs = written(tmp_path / "o", [{"id": number, "output": "No."} for number in range(3000)])
    command = f"{sys.executable} -m tunemill_trainer score --rows {rows} --outputs {outputs} --json | head -n 1"
    ended = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("{\n", "")


def test_score_imports_no_training_libraries(tmp_path: Path):
    """It must start fast, on a laptop without a GPU."""
    arguments = ["--rows", written(tmp_path / "r", [ROW]), "--outputs", written(tmp_path / "o", [OUTPUT])]
    program = (
        "import sys; from tunemill_trainer.__main__ import main; code = main(sys.argv[1:]);"
        "print(code, [name for name in ('torch', 'transformers', 'trl', 'peft', 'datasets') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "score", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "0 []"

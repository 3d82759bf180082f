"""`tunemill ask`, `evaluate` and `serve` with real servers, in this process or separate ones."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trainer.commands.json_shapes import undocumented, unprinted
from trainer.data.building import a_file, openai_row
from trainer.serving.chat_server import a_chat_server, completion
from trainer.serving.test_releases import a_release, contract_of
from tunemill_api.failures import ExitCode
from tunemill_trainer.__main__ import tunemill
from tunemill_trainer.commands import ask, evaluate

RIGHT, WRONG = ("get_weather", '{"city": "Seoul"}'), ("get_weather", '{"town": "Seoul"}')


@pytest.fixture
def tools(tmp_path: Path) -> str:
    """A file with the tools of the rows."""
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(openai_row()["tools"]))
    return str(path)


def test_ask_prints_text_and_calls(tools, capsys):
    """It exits with 0 if each call is valid for its schema."""
    with a_chat_server(lambda _: completion("One moment.", [RIGHT])) as server:
        assert tunemill(["ask", "Weather in Seoul?", "--tools", tools, "--base-url", server.url]) == 0
    assert capsys.readouterr().out.splitlines() == ["One moment.", '→ get_weather {"city": "Seoul"}']
    assert server.requests[0]["messages"] == [{"role": "user", "content": "Weather in Seoul?"}]


def test_ask_reports_an_invalid_call(tools, capsys):
    """By the schema of its tool, as invalid JSON, or as an unknown tool."""
    calls = [WRONG, ("get_weather", "{"), ("fly", "{}")]
    with a_chat_server(lambda _: completion("Hm.", calls, reasoning="?")) as server:
        arguments = ["ask", "Weather?", "--tools", tools, "--base-url", server.url]
        assert tunemill([*arguments, "--json"]) == 65
        printed = capsys.readouterr().out
        assert tunemill(arguments) == 65
    assert undocumented(ask.COMMAND, printed) == []
    assert unprinted(ask.COMMAND, printed) == set()
    first, second, third = (call["problems"] for call in json.loads(printed)["calls"])
    assert any("town" in problem for problem in first)
    assert "not JSON" in second[0]
    assert "fly is not declared" in third[0]
    assert "  wrong: " in capsys.readouterr().out


def test_ask_sends_the_key_of_the_named_variable_only(tools, capsys, monkeypatch):
    """The usual variable of a hosted service is not sent to other servers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-you")
    monkeypatch.setenv("MY_KEY", "mine")
    with a_chat_server(lambda _: completion("Hello.")) as server:
        arguments = ["ask", "Hello", "--tools", tools, "--base-url", server.url]
        assert tunemill(arguments) == 0
        assert tunemill([*arguments, "--api-key-env", "MY_KEY"]) == 0
        assert tunemill([*arguments, "--api-key-env", "NO_KEY"]) == 64
    assert server.keys == ["Bearer none", "Bearer mine"]
    assert "NO_KEY of --api-key-env is not set" in capsys.readouterr().err


def test_evaluate_judges_every_turn_like_the_stage(tmp_path, capsys):
    """One call is right, one wrong, one missing; a row with errors is skipped."""
    rows = [openai_row(f"Weather {number}?", city="Seoul") for number in range(3)]
    rows.append(openai_row("Bad", town="Rome"))
    path = a_file(tmp_path, rows, "rows.jsonl").path
    replies = {
        "Weather 0?": completion(calls=[RIGHT]),
        "Weather 1?": completion(calls=[("get_weather", '{"city": "Busan"}')]),
        "Weather 2?": completion('<tool_call>{"name": "get_weather", "arguments": {"city": "Seoul"}}</tool_call>'),
    }

    def answer(request: dict) -> dict:
        return replies[next(m["content"] for m in request["messages"] if m["role"] == "user")]

    with a_chat_server(answer) as server:
        arguments = ["evaluate", "--dataset", str(path), "--base-url", server.url]
        assert tunemill([*arguments, "--json"]) == 0
        printed = capsys.readouterr().out
        assert tunemill([*arguments, "--max-rows", "2"]) == 0
        shown = capsys.readouterr().out
    found = json.loads(printed)
    assert undocumented(evaluate.COMMAND, printed) == []
    assert unprinted(evaluate.COMMAND, printed) == set()
    assert found["leftOut"] == 1
    assert [row["id"] for row in found["rows"]] == [f"{path}:{line}#1" for line in (1, 2, 3)]
    assert [row["exact_match"] for row in found["rows"]] == [True, False, False]
    assert found["metrics"]["valid_call_rate"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["metrics"]["lenient_only_rate"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["formats"]["replies"] == "tool_calls"
    assert shown.startswith(f"tuned at {server.url}; 1 rows with errors are left out")
    assert "2 rows in OpenAI format" in shown


def test_evaluate_without_usable_rows_sends_no_requests(tmp_path, capsys):
    """The error is reported."""
    path = a_file(tmp_path, [openai_row("Bad", town="Rome")], "rows.jsonl").path
    assert tunemill(["evaluate", "--dataset", str(path), "--base-url", "http://127.0.0.1:9/v1"]) == 65
    assert f"1 rows have errors: {path} line 1: " in capsys.readouterr().err


ENGINE = """#!/bin/sh
exec {python} - "$@" <<'END'
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
print("serving", *sys.argv[1:], flush=True)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
END
"""


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_starts_the_engine_and_ends_with_it(tmp_path, number):
    """For a folder published by a run; flags after -- are passed to the engine. Ctrl-C stops the server."""
    place = tmp_path / "result"
    release = a_release(place / "releases" / "c0ffee", contract_of("", place.as_uri()), adapter=False)
    (place / "main").symlink_to(Path("releases") / "c0ffee")
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(ENGINE.format(python=sys.executable))
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        [sys.executable, "-m", "tunemill_trainer", "serve", str(place), "--port", "0", "--", "--max-model-len", "512"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        lines = [first]
        while not lines[-1].startswith("Ctrl-C"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
    assert first.startswith(f"serving serve {release} --served-model-name result")
    assert first.rstrip().endswith("--max-model-len 512")
    assert "model     result\n" in lines
    assert any(line.startswith("curl http://127.0.0.1:") for line in lines)


def test_serve_of_an_adapter_names_the_server_to_install(tmp_path, capsys, monkeypatch):
    """Transformers is installed, but does not load adapters."""
    monkeypatch.setenv("PATH", str(tmp_path))
    release = a_release(tmp_path / "release", contract_of("acme/tools", ""), adapter=True)
    assert tunemill(["serve", str(release)]) == ExitCode.CONFIGURATION
    assert "vLLM is not installed. Run: pip install vllm" in capsys.readouterr().err


def test_serve_of_an_invalid_release_is_reported(tmp_path, capsys):
    """In one line."""
    assert tunemill(["serve", str(tmp_path)]) == 66
    assert "has no serving.json" in capsys.readouterr().err
    assert tunemill(["serve", "not/a/repository"]) == 66
    assert "neither a folder nor a repository" in capsys.readouterr().err

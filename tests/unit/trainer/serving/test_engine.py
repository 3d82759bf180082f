"""An engine is started as a process, awaited, and stopped with all its child processes."""

import os
import sys
import time
from pathlib import Path

import pytest
from tunemill_api.failures import ExitCode
from tunemill_api.publish import ServingTarget
from tunemill_trainer.release.contract import Launch
from tunemill_trainer.serving import engine
from tunemill_trainer.serving.engine import program_of, running
from tunemill_trainer.serving.errors import ServingError

LAUNCH = Launch(ServingTarget.VLLM, "/model", "", "tools", "hermes")
SERVER = """
import http.server, os, subprocess, sys
folder = os.environ["FOLDER"]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(folder + "/child", "w").write(str(child.pid))
open(folder + "/arguments", "w").write("\\n".join(sys.argv[1:]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def module(tmp_path: Path) -> dict[str, str]:
    """An environment in which vLLM can be imported, but has no command."""
    package = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER)
    return {"PYTHONPATH": str(tmp_path / "packages"), "FOLDER": str(tmp_path), "PATH": ""}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_engine_gets_the_flags_of_the_contract_and_leaves_no_processes(tmp_path, module):
    """Its child is killed, although the engine does not stop it."""
    with running(LAUNCH, log=tmp_path / "log", flags=["--dtype", "float32"], environment=module) as started:
        started.wait_until_healthy(60)
        child = int((tmp_path / "child").read_text())
        assert is_alive(child)
        port = started.url.removeprefix("http://127.0.0.1:").removesuffix("/v1")
    assert started.model == "tools"
    assert (tmp_path / "arguments").read_text().split() == [
        *("--model", "/model", "--served-model-name", "tools"),
        *("--chat-template-content-format", "string"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--host", "127.0.0.1", "--port", port, "--dtype", "float32"),
    ]
    until = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


def test_an_engine_that_exits_is_reported_at_once_with_its_log(tmp_path, module):
    """Before the start timeout."""
    package = Path(module["PYTHONPATH"]) / "vllm" / "entrypoints" / "openai" / "api_server.py"
    package.write_text("import sys; print('x' * 9000); sys.exit('no kernel for this CPU')")
    with (
        running(LAUNCH, log=tmp_path / "log", environment=module) as started,
        pytest.raises(ServingError, match=r"exited with code 1; the end of its log:\n[^$]*no kernel") as raised,
    ):
        started.wait_until_healthy(600)
    assert len(str(raised.value)) < 5000


def test_an_engine_without_a_response_times_out(tmp_path, module):
    """After the start timeout."""
    package = Path(module["PYTHONPATH"]) / "vllm" / "entrypoints" / "openai" / "api_server.py"
    package.write_text("import time; time.sleep(600)")
    with (
        running(LAUNCH, log=tmp_path / "log", environment=module) as started,
        pytest.raises(ServingError, match="did not answer within 1 s; its log is empty"),
    ):
        started.wait_until_healthy(1)


def test_a_wait_can_be_interrupted(tmp_path, module):
    """By a request to stop, for example."""

    def stop() -> None:
        raise InterruptedError

    with running(LAUNCH, log=tmp_path / "log", environment=module) as started, pytest.raises(InterruptedError):
        started.wait_until_healthy(60, stop)


def test_the_command_is_preferred_to_the_module(tmp_path, module):
    """As users start it."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    assert program_of(ServingTarget.VLLM, module | {"PATH": str(command.parent)}) == [str(command), "serve"]
    as_module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert program_of(ServingTarget.VLLM, module) == as_module


def test_a_missing_engine_is_reported(monkeypatch):
    """With the command to install it."""
    monkeypatch.setattr(engine, "program_of", lambda *_: None)
    with pytest.raises(ServingError, match=r"vLLM is not installed\. Run: pip install vllm") as raised, running(LAUNCH):
        pass
    assert raised.value.code == ExitCode.CONFIGURATION
    assert program_of(ServingTarget.TRANSFORMERS, os.environ) is not None

"""What is published serves: the contract's own command starts an OpenAI-compatible server, and a client gets calls."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from learn.runs import TrainedRun
from openai import OpenAI
from tunemill_api import keys
from tunemill_api.stage_report import Stage
from tunemill_api.status import ServingFacts
from tunemill_dev.cluster.ports import free_ports
from tunemill_trainer.prepared import Case, Prepared

_SECONDS = 120


@contextmanager
def a_server(run: TrainedRun, command: str, folder: Path) -> Iterator[OpenAI]:
    """Start a server with a contract's command as a user does, on a free port, and return a client of it."""
    (port,) = free_ports(1)
    program, *arguments = shlex.split(command)
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [str(Path(sys.executable).parent / program), *arguments, "--port", str(port), "--device", "cpu"],
            env=os.environ
            | {
                "HF_ENDPOINT": run.world.hub_url,
                "HF_TOKEN": (run.world.secrets / "hub-read" / "token").read_text(),
                "HF_HOME": str(folder / "cache"),
                "HF_HUB_DISABLE_XET": "1",
                "OMP_NUM_THREADS": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}", log)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0, timeout=60)
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_until_healthy(server: subprocess.Popen, url: str, log: Path) -> None:
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            if httpx2.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the server is not there after {_SECONDS} s: {log.read_text()}")


def right_cases(run: TrainedRun, folder: Path) -> list[Case]:
    """Return the cases for which evaluate found that the tuned model calls what is wanted."""
    workspace, prepared = run.world.workspace(), run.run.prepared
    assert prepared is not None
    workspace.fetch(Stage.EVALUATE, keys.evaluate_key(run.train_key, run.run.spec), folder / "evaluation")
    workspace.fetch(Stage.PREPARE, prepared.key, folder / "prepared")
    lines = (folder / "evaluation" / "cases.jsonl").read_text().splitlines()
    right = {line["id"] for line in map(json.loads, lines) if line["tuned"]["right"] and line["gold"].get("calls")}
    return [case for case in Prepared(folder / "prepared").cases() if case.id in right]


def asked(client: OpenAI, model: str, case: Case) -> list[tuple[str, dict]]:
    """Ask as any client would, and return the calls that it gets."""
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": message.role.value, "content": message.content} for message in case.messages],
        tools=[{"type": "function", "function": tool.to_json()} for tool in case.tools],
        temperature=0,
        max_tokens=128,
    )
    calls = reply.choices[0].message.tool_calls or []
    assert reply.choices[0].finish_reason == "tool_calls"
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_an_openai_client_gets_the_calls_that_evaluate_promised(extended_run: TrainedRun, tmp_path: Path):
    """Push, start the server with the command in the status, ask with tools: the parsed call is the row's own."""
    run = extended_run.changed(
        evaluation={"gates": [{"metric": "exact_match", "min": "0.2"}]},
        publish={"repository": "acme/served", "serving": "Transformers"},
    )
    assert run.stage(Stage.EVALUATE).code == 0
    ended = run.stage(Stage.PUBLISH)
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.published is not None
    serving = ended.report.published.serving
    assert serving == ServingFacts(
        target="Transformers",
        model=ended.report.published.merged,
        merged=True,
        adapter_servable=False,
        reason="`transformers serve` loads full models only",
        tool_call_parser="response_template",
        command=f"transformers serve {ended.report.published.merged}",
        proof="4 prompts give the replies of the trained model; 2 of 2 replies parsed into the expected calls",
    )
    cases = right_cases(run, tmp_path)[:4]
    assert len(cases) >= 2
    with a_server(run, serving.command, tmp_path) as client:
        for case in cases:
            wanted = [(call.name, call.arguments) for call in case.gold.calls]
            assert asked(client, serving.model, case) == wanted

"""The contract's command starts an OpenAI-compatible server with the published model, and a client gets calls."""

import json
from dataclasses import replace
from pathlib import Path

from learn.runs import TrainedRun
from tunemill_api import keys
from tunemill_api.stage_report import Stage
from tunemill_api.status import ServingFacts
from tunemill_trainer.prepared import Case, Prepared
from tunemill_trainer.serving.client import Client
from tunemill_trainer.serving.engine import running
from tunemill_trainer.serving.releases import launch_of


def right_cases(run: TrainedRun, folder: Path) -> list[Case]:
    """Return the cases in which the tuned model makes the expected calls."""
    workspace, prepared = run.world.workspace(), run.run.prepared
    assert prepared is not None
    workspace.fetch(Stage.EVALUATE, keys.evaluate_key(run.train_key, run.run.spec), folder / "evaluation")
    workspace.fetch(Stage.PREPARE, prepared.key, folder / "prepared")
    lines = (folder / "evaluation" / "cases.jsonl").read_text().splitlines()
    right = {line["id"] for line in map(json.loads, lines) if line["tuned"]["right"] and line["gold"].get("calls")}
    return [case for case in Prepared(folder / "prepared").cases() if case.id in right]


def test_an_openai_client_gets_the_calls_of_evaluate(extended_run: TrainedRun, tmp_path: Path):
    """The server is started with the command in the status, and the parsed calls are those of the rows."""
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
    assert serving is not None
    proof = "4 prompts give the replies of the trained model; 2 of 2 replies parsed into the expected calls; "
    assert serving.proof.startswith(f"{proof}Transformers returned the judged calls for ")
    assert serving.model_copy(update={"proof": ""}) == ServingFacts(
        target="Transformers",
        model=ended.report.published.merged,
        merged=True,
        adapter_servable=False,
        reason="`transformers serve` loads full models only",
        tool_call_parser="response_template",
        command=f"transformers serve {ended.report.published.merged}",
    )
    cases = right_cases(run, tmp_path)[:4]
    assert len(cases) >= 2
    repository, revision = serving.model.split("@")
    folder = Path(run.api.snapshot_download(repository, revision=revision, local_dir=tmp_path / "release"))
    # From the Hub, as in the command.
    launch = replace(launch_of(folder), model=repository, revision=revision)
    assert launch.command() == serving.command
    environment = {
        "HF_ENDPOINT": run.world.hub_url,
        "HF_TOKEN": (run.world.secrets / "hub-read" / "token").read_text(),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    log = tmp_path / "server.log"
    with running(launch, log=log, flags=["--device", "cpu"], environment=environment) as engine:
        engine.wait_until_healthy()
        client = Client(engine.url, engine.model, retries=0)
        for number, case in enumerate(cases):
            reply = client.ask(case.messages, case.tools, max_tokens=128, stream=bool(number % 2))
            assert reply.parsed.calls == case.gold.calls
            assert reply.finish_reason == "tool_calls"

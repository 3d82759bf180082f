"""The contract's command starts vLLM with two adapters on one server."""

import json
from pathlib import Path

import pytest
from serving.conftest import ROOT
from tunemill_api.failures import ExitCode
from tunemill_api.publish import ServingTarget
from tunemill_dev.serving.adapters import variants
from tunemill_dev.serving.cells import TUNED, launch, questions
from tunemill_dev.serving.engines import FLAGS, environment
from tunemill_dev.serving.training import rows, trained
from tunemill_dev.testbed import json_lines
from tunemill_trainer.__main__ import tunemill
from tunemill_trainer.data.shown import openai_form
from tunemill_trainer.release import servability
from tunemill_trainer.serving.client import Client
from tunemill_trainer.serving.engine import running


@pytest.mark.timeout(900)
def test_one_server_serves_two_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each answers with its own weights: the trained one makes the calls of its rows, the random one does not.

    `tunemill evaluate` judges both on the same rows, so that one can be compared with the other.
    """
    family = trained("Llama 3")
    adapter = servability.read_adapter(family.adapter, family.base, family.vocabulary)
    verdict = servability.judge(adapter, ServingTarget.VLLM)
    assert verdict.servable, verdict.problems
    started = launch(family, verdict)
    other = next(variant for variant in variants(family, tmp_path) if variant.name == "LoRA")
    modules = ["--lora-modules", f"{TUNED}={family.adapter}", f"other={other.folder}", "--max-loras", "2"]
    variables = environment(ROOT / "build" / "vllm")
    with running(started, log=tmp_path / "log", flags=[*FLAGS, *modules], environment=variables) as engine:
        engine.wait_until_healthy()
        tuned, random = (Client(engine.url, name) for name in (TUNED, "other"))
        for question in questions(family):
            reply = tuned.ask(question.history, question.row.tools, max_tokens=96)
            assert reply.parsed.calls == question.turn.calls
            if question.turn.calls:
                assert random.ask(question.history, question.row.tools, max_tokens=8).parsed.calls == ()
        rows_of_both = tmp_path / "rows.jsonl"
        rows_of_both.write_text(json_lines(map(openai_form, rows(family.small))))
        exact = {}
        for name in (TUNED, "other"):
            server = ("--base-url", engine.url, "--model", name, "--max-tokens", "96")
            assert tunemill(["evaluate", "--dataset", str(rows_of_both), *server, "--json"]) == ExitCode.DONE
            exact[name] = json.loads(capsys.readouterr().out)["metrics"]["exact_match"]
        assert exact == {TUNED: 1, "other": 0}

"""--json prints exactly the fields of docs/reference/command-line.md, with their types."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, a_speaker
from trainer.commands.json_shapes import undocumented, unprinted
from trainer.data.building import a_file, openai_row
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage, StageReport, failure_of
from tunemill_api.status import TrainedFacts
from tunemill_trainer.__main__ import tunemill
from tunemill_trainer.commands import lint, plan, program, run, score, show
from tunemill_trainer.gpu_check import command as gpu_check
from tunemill_trainer.gpu_check.command import Part, Result
from tunemill_trainer.learn import memory_plan
from tunemill_trainer.learn.memory_plan import Estimate, MemoryMode, Need

MANIFEST = """
apiVersion: tunemill.dev/v1alpha1
kind: FunctionCallFineTune
metadata: {name: tools}
spec: {baseModel: {id: ./base}, dataset: {uri: ./calls.jsonl}, publish: {repository: ./result}}
"""


@pytest.fixture
def finetune(tmp_path: Path) -> Path:
    """A manifest."""
    path = tmp_path / "finetune.yaml"
    path.write_text(MANIFEST)
    return path


def test_every_command_with_a_result_has_documented_json_output() -> None:
    """Servers, completion and stages have none."""
    without = [command.name for command in program.commands_of("tunemill-trainer") if command.json is None]
    assert without == ["serve", "completion", "prepare", "train", "evaluate", "publish", "stages"]
    assert all(command.json for command in program.commands_of("tunemill") if command.name not in without[:2])


def test_lint(tmp_path, capsys):
    """Findings, and a file of an unknown format."""
    rows = a_file(tmp_path, [openai_row("a"), openai_row("b", town="Rome")], "rows.jsonl").path
    unknown = a_file(tmp_path, [{"said": "?"}], "unknown.jsonl").path
    assert tunemill(["lint", str(rows), str(unknown), "--json"]) == 65
    printed = capsys.readouterr().out
    assert undocumented(lint.COMMAND, printed) == []
    assert unprinted(lint.COMMAND, printed) == set()


def test_show(tmp_path, capsys):
    """A row with all possible content."""
    row = openai_row("a")
    row["messages"][1] |= {"reasoning_content": "It is a city."}
    row["messages"][1]["tool_calls"][0]["id"] = "x"
    row["messages"] += [
        {"role": "tool", "tool_call_id": "x", "name": "get_weather", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    a_speaker(CHATML, template=CHATML_TEMPLATE).save_pretrained(tmp_path / "base")
    path = a_file(tmp_path, [row, openai_row("b")]).path
    assert tunemill(["show", str(path), "--json", "--tokenizer", str(tmp_path / "base")]) == 0
    printed = capsys.readouterr().out
    assert undocumented(show.COMMAND, printed) == []
    assert unprinted(show.COMMAND, printed.splitlines()[0]) == set()


def test_score(tmp_path, capsys):
    """With metrics, and without them for replies of an unknown format."""
    rows = a_file(tmp_path, [openai_row("a") | {"id": "a"}, openai_row("b") | {"id": 2}], "rows.jsonl").path
    reply = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
    outputs = a_file(tmp_path, [{"id": "a", "output": reply}, {"id": 2, "output": "No."}], "outputs.jsonl").path
    assert tunemill(["score", "--rows", str(rows), "--outputs", str(outputs), "--json"]) == 0
    printed = capsys.readouterr().out
    assert undocumented(score.COMMAND, printed) == []
    assert unprinted(score.COMMAND, printed) == set()
    unknown = [{"id": i, "output": '<action>{"name": "get_weather", "arguments": {}}</action>'} for i in ("a", 2)]
    outputs = a_file(tmp_path, unknown, "unknown.jsonl").path
    assert tunemill(["score", "--rows", str(rows), "--outputs", str(outputs), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["formats"]["replies"] == "unknown"
    assert undocumented(score.COMMAND, printed) == []


def test_plan(finetune, tmp_path, capsys, monkeypatch):
    """The estimate, with the GPUs that it fits."""
    need = Need(MemoryMode.NONE, {"weights": 20 << 30})
    estimate = Estimate(8_000_000_000, (need, Need(MemoryMode.FULL, {"weights": 18 << 30}, compact=True)), (need,))
    monkeypatch.setattr(memory_plan, "estimate_in_child", lambda *_: estimate)
    assert tunemill(["plan", str(finetune), "--config", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr().out
    assert undocumented(plan.COMMAND, printed) == []
    assert unprinted(plan.COMMAND, printed) == set()
    fits = {gpu["name"]: gpu["fits"] for gpu in json.loads(printed)["gpus"]}
    assert (fits["T4"], fits["H100"]) == (None, MemoryMode.NONE.value)


def test_run(finetune, tmp_path, capsys, monkeypatch):
    """The reports of all stages up to the failed one, whose exit code is returned."""
    now = datetime.now(UTC)
    trained = TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://b/adapter")

    def ended(stage: Stage, _spec: object, _work: Path, *, log_to_stderr: bool) -> run._Ended:
        assert log_to_stderr, "the log would be in the middle of the JSON"
        report = StageReport(stage=stage, key="k", executed=True, started_at=now, finished_at=now)
        if stage is Stage.TRAIN:
            report = report.model_copy(update={"trained": trained})
        if stage is Stage.EVALUATE:
            failure = failure_of(Reason.OUT_OF_MEMORY, "not enough memory")
            return run._Ended(71, report.model_copy(update={"failure": failure}), interrupted=False)
        return run._Ended(0, report, interrupted=False)

    monkeypatch.setattr(run, "_run_stage", ended)
    assert tunemill(["run", str(finetune), "--work", str(tmp_path / "work"), "--json"]) == 71
    printed = capsys.readouterr().out
    assert undocumented(run.COMMAND, printed) == []
    assert unprinted(run.COMMAND, printed) == set()
    stages = json.loads(printed)["stages"]
    assert [stage["stage"] for stage in stages] == ["prepare", "train", "evaluate"]
    assert stages[1]["trained"]["adapter"] == "s3://b/adapter"
    assert stages[2]["failure"]["reason"] == "OutOfMemory"


def test_gpu_check(tmp_path, capsys, monkeypatch):
    """The content of --report, and nothing else on standard output."""
    results = [Result("speed", "passed", "", 1.23, {"tokensPerSecond": 5.0}), Result("resume", "skipped", "no time")]
    monkeypatch.setattr(gpu_check, "without_gpu", lambda: "")
    monkeypatch.setattr(gpu_check, "run_parts", lambda *_: iter(results))
    monkeypatch.setattr(gpu_check, "small_parts", lambda *_, **__: [Part("speed", 1, {}), Part("resume", 1, {})])
    report = tmp_path / "report.json"
    assert tunemill(["gpu-check", "--json", "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert undocumented(gpu_check.COMMAND, printed) == []
    assert unprinted(gpu_check.COMMAND, printed) == set()
    assert json.loads(printed) == json.loads(report.read_text())


def test_an_error_prints_no_json(tmp_path, capsys):
    """Only one line on standard error."""
    assert tunemill(["lint", str(tmp_path / "missing.jsonl"), "--json"]) == 66
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert tunemill(["run", str(tmp_path / "missing.yaml"), "--json"]) == 64
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_the_comparison_can_fail():
    """Undocumented fields and other types are named."""
    printed = json.dumps({"results": [{"name": 7, "status": "passed", "more": None}]})
    assert [path.split("\0")[-1] for path in undocumented(gpu_check.COMMAND, printed)] == ["more", "name"]
    assert "results[].seconds" in unprinted(gpu_check.COMMAND, printed)

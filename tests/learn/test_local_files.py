"""A run with local files only: data, base model, outputs and release in folders."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from learn.training import executed, run_command
from tunemill_api.failures import ExitCode
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base
from tunemill_trainer.storage.workspace import Manifest

SPEC = {
    "baseModel": {"id": "./base model"},
    "dataset": {"uri": "./data/"},
    "adapter": {"lora": {"rank": 4}},
    "training": {"maxSteps": 3, "batchSize": 8, "maxLength": 512},
    "evaluation": {"maxNewTokens": 20, "gates": []},
    "publish": {"repository": "./result", "artifacts": ["Adapter", "Merged", "Report"]},
    "compute": {"gpus": 0},
}


class Machine:
    """A folder with a base model, rows and a manifest; runs in it have no network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.spec = folder, json.loads(json.dumps(SPEC))
        shutil.copytree(cached_base("gemma2", steps=0), folder / "base model")
        (folder / "data").mkdir()
        lines = [json.dumps(row) + "\n" for row in rows(120, seed=5, offered=2, talk=0.15)]
        (folder / "data" / "a.jsonl").write_text("".join(lines[:60]))
        (folder / "data" / "b.jsonl").write_text("".join(lines[60:]))
        (folder / "data" / "notes.txt").write_text("no rows")

    def run(self) -> tuple[int, str, list[str]]:
        """Return the exit code, the output, and the executed stages."""
        manifest = {"apiVersion": "tunemill.dev/v1alpha1", "kind": "FunctionCallFineTune", "metadata": {"name": "t"}}
        (self.folder / "finetune.yaml").write_text(yaml.safe_dump({**manifest, "spec": self.spec}))
        nowhere = dict.fromkeys(("HF_ENDPOINT", "AWS_ENDPOINT_URL", "HTTPS_PROXY"), "http://127.0.0.1:9")
        ended = run_command(["run", "finetune.yaml", "--work", "work"], nowhere, self.folder)
        return ended.code, ended.log, executed(ended.log)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with one finished run."""
    found = Machine(tmp_path_factory.mktemp("machine"))
    code, printed, executed = found.run()
    assert (code, executed) == (0, list(Stage)), printed
    return found


def test_the_release_loads_from_its_folder(machine: Machine) -> None:
    """The adapter refers to the folder of its base model; card, report and full model exist."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    release = machine.folder / "result" / "main"
    assert {"README.md", "report.html", "serving.json", "provenance.json"} <= {path.name for path in release.iterdir()}
    card = (release / "README.md").read_text()
    assert f"`{machine.folder / 'base model'}`" in card
    assert f'folder = "{release}"' in card
    assert "file://" not in card
    AutoTokenizer.from_pretrained(release)
    AutoPeftModelForCausalLM.from_pretrained(release)
    AutoModelForCausalLM.from_pretrained(machine.folder / "result-merged" / "main")


def test_existing_outputs_are_reused(machine: Machine) -> None:
    """The second run reuses all outputs; a removed release is created again from them."""
    assert machine.run()[::2] == (0, [])
    (machine.folder / "result" / "main").unlink()
    assert machine.run()[::2] == (0, [Stage.PUBLISH])
    (manifest,) = (machine.folder / "tunemill" / "default" / "train").glob("*/manifest.json")
    assert Manifest.model_validate_json(manifest.read_bytes()).stage == Stage.TRAIN


@pytest.mark.parametrize(
    ("field", "name", "value", "code", "named"),
    [
        ("baseModel", "id", "./bse", ExitCode.INPUT_MISSING, "spec.baseModel.id {}/bse"),
        ("dataset", "uri", "./calls.jsonl", ExitCode.INPUT_MISSING, "spec.dataset.uri is {}/calls.jsonl"),
        ("publish", "repository", "/proc/result", ExitCode.SPEC_WRONG, "spec.publish.repository, /proc/result"),
        ("workspace", "uri", "./finetune.yaml", ExitCode.SPEC_WRONG, "{}/finetune.yaml"),
    ],
)
def test_a_missing_path_is_reported_with_its_field(machine: Machine, field, name, value, code, named) -> None:
    """Before anything is trained."""
    before = json.loads(json.dumps(machine.spec))
    machine.spec.setdefault(field, {})[name] = value
    found, printed, executed = machine.run()
    machine.spec = before
    assert (found, executed) == (code, []), printed
    assert named.format(machine.folder) in printed

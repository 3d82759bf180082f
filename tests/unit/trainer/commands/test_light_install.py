"""`pip install tunemill` without the extra `train`: commands without torch work with the installed packages only."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trainer.chat.speakers import CHATML, CHATML_TEMPLATE, a_speaker
from trainer.data.building import openai_row

HEAVY = {"torch", "trl", "peft", "datasets", "accelerate", "bitsandbytes", "boto3", "matplotlib", "tensorboard"}
PROGRAM = """
import json, sys
blocked = set(json.loads(sys.argv.pop(1)))
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Hiding, sys.meta_path)
from tunemill_trainer.__main__ import tunemill
for arguments in json.loads(sys.argv[1]):
    print("exit code", tunemill(arguments), flush=True)
print("imported", json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def installed_by(name: str, extras: tuple[str, ...] = ()) -> set[str]:
    """Return the distributions that pip installs with one, from the metadata. Those missing here are skipped."""
    found: set[str] = set()
    waiting = [(name, extras)]
    while waiting:
        name, extras = waiting.pop()
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        found.add(canonicalize_name(name))
        for requirement in map(Requirement, lines):
            wanted = any(
                requirement.marker is None or requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            )
            if wanted and canonicalize_name(requirement.name) not in found:
                waiting.append((requirement.name, tuple(requirement.extras)))
    return found


def modules_outside(distributions: set[str]) -> list[str]:
    """Return the importable modules that belong to none of the distributions."""
    return [
        module
        for module, owners in packages_distributions().items()
        if not any(canonicalize_name(owner) in distributions for owner in owners)
        and not module.startswith(("tunemill_", "_"))
    ]


def test_the_extra_has_all_training_dependencies():
    """The light install requires none of the training stack, the extra all of it."""
    light, whole = installed_by("tunemill"), installed_by("tunemill", ("train",))
    assert not HEAVY & light
    assert whole >= HEAVY
    assert {"pyarrow", "transformers", "huggingface-hub", "cryptography", "shtab", "tqdm"} <= light


def test_commands_without_torch_run_with_the_light_install(tmp_path: Path):
    """All packages outside `pip install tunemill` are blocked; the files are real."""
    rows, outputs, base = tmp_path / "rows.jsonl", tmp_path / "outputs.jsonl", tmp_path / "base"
    rows.write_text(json.dumps(openai_row() | {"id": "a"}))
    outputs.write_text(json.dumps({"id": "a", "output": "No."}))
    a_speaker(CHATML, template=CHATML_TEMPLATE).save_pretrained(base)
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(openai_row()["tools"]))
    server = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    commands = [
        ["lint", str(rows), "--tokenizer", str(base)],
        ["show", str(rows), "--tokenizer", str(base)],
        ["score", "--rows", str(rows), "--outputs", str(outputs)],
        ["verify", "acme/tools", "--endpoint", "http://127.0.0.1:9"],
        ["ask", "Hello", "--tools", str(tools), *server],
        ["evaluate", "--dataset", str(rows), *server],
        ["serve", str(base)],
        ["completion", "fish"],
        ["run", "finetune.yaml"],
    ]
    blocked = modules_outside(installed_by("tunemill"))
    assert {"torch", "trl", "peft", "datasets", "boto3", "pytest"} <= set(blocked)
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(blocked), json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = ended.stdout.splitlines()
    assert [line for line in lines if line.startswith("exit code")] == [
        f"exit code {code}" for code in (0, 0, 0, 69, 69, 69, 66, 0, 78)
    ], ended.stderr
    assert "1 row, 1 usable with 1 call; 0 errors, 0 warnings" in lines
    assert not HEAVY & set(json.loads(lines[-1].removeprefix("imported ")))
    assert "PyTorch" not in ended.stderr


@pytest.mark.parametrize("command", ["run", "plan", "gpu-check"])
def test_commands_that_require_the_extra_are_declared(command: str):
    """The reference page and the error message use the declaration."""
    from tunemill_trainer.commands.program import commands_of

    assert next(each for each in commands_of("tunemill") if each.name == command).needs_training

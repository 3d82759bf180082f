"""`python -m tunemill_dev.quickstart FOLDER`: makes a small base model and rows, and runs the trainer on them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tunemill_dev.cluster.console import say, step
from tunemill_dev.tiny import rows
from tunemill_dev.tiny.cached import cached_base

_ROWS, _OFFERED = 900, 2
_MANIFEST = "finetune.yaml"


def main() -> int:
    """Fill the folder, run all stages, and return the trainer's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.quickstart", description=__doc__)
    parser.add_argument("folder", type=Path, help="gets base model, data, manifest, workspace and result")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with step("a base model of a million parameters"):
        shutil.copytree(cached_base(), folder / "base", dirs_exist_ok=True)
    with step(f"{_ROWS} rows in calls.jsonl"):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(_ROWS, offered=_OFFERED))
        (folder / "calls.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(Path(__file__).parent / _MANIFEST, folder / _MANIFEST)
    shown = os.path.relpath(folder)
    say(f"\n$ tunemill-trainer run {shown}/{_MANIFEST}")
    command = [sys.executable, "-m", "tunemill_trainer", "run", str(folder / _MANIFEST), "--work", str(folder / "work")]
    code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
    if code == 0:
        say(_next_steps(shown))
    return code


def _next_steps(folder: str) -> str:
    result = f"{folder}/result/main"
    return f"""
In {result}: the adapter, README.md (the model card), report.html (every held-out case, side by side).

With rows and a model of your own:
  .venv/bin/tunemill-trainer lint calls.jsonl     says what is wrong with them, before anything is trained
  edit {folder}/{_MANIFEST}:
    baseModel.id is a folder or a name on the Hub; leave out tokenizer, adapter and training
  .venv/bin/tunemill-trainer run {folder}/{_MANIFEST}

The same manifest, with s3:// and Hub names instead of paths, is what `kubectl apply` takes: docs/how-to/first-run.md.
"""


if __name__ == "__main__":
    sys.exit(main())

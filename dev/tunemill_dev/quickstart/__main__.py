"""Creates a small base model and data, and runs the trainer on them: `python -m tunemill_dev.quickstart FOLDER`."""

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
    """Create the files in the folder, run all stages, and return the trainer's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.quickstart", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder for base model, data, manifest, workspace and result")
    folder = parser.parse_args().folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with step("a base model of a million parameters"):
        shutil.copytree(cached_base(), folder / "base", dirs_exist_ok=True)
    with step(f"{_ROWS} rows in calls.jsonl"):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(_ROWS, offered=_OFFERED))
        (folder / "calls.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(Path(__file__).parent / _MANIFEST, folder / _MANIFEST)
    shown = os.path.relpath(folder)
    say(f"\n$ tunemill run {shown}/{_MANIFEST}")
    command = [sys.executable, "-m", "tunemill_trainer", "run", str(folder / _MANIFEST), "--work", str(folder / "work")]
    code = subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode
    if code == 0:
        say(_next_steps(shown))
    return code


def _next_steps(folder: str) -> str:
    result = f"{folder}/result/main"
    return f"""
The results are in {result}: the adapter, README.md (model card) and report.html (every held-out case).

To use your own data and model:
  1. Check the data:
       .venv/bin/tunemill lint calls.jsonl
  2. Edit {folder}/{_MANIFEST}: set dataset.uri, set baseModel.id to a folder or a name on the Hub,
     and remove tokenizer, adapter and training.
  3. Run it:
       .venv/bin/tunemill run {folder}/{_MANIFEST}

In a cluster, use the same manifest with s3:// and Hub names instead of paths: docs/how-to/first-run.md.
"""


if __name__ == "__main__":
    sys.exit(main())

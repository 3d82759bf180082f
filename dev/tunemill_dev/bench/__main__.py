"""All benchmarks of the stages, one after another, each in a process of its own: `make bench-trainer`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OUTPUT = Path("build/bench/trainer.json")


def main() -> None:
    """Print the figures and leave them in `build/bench/trainer.json`."""
    ratios = {**_measured("train"), **_measured("evaluate")}
    figures = json.dumps({"ratios": ratios, "prepare": _measured("prepare")}, indent=2)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(figures + "\n")
    print(figures)


def _measured(name: str) -> dict[str, Any]:
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", f"tunemill_dev.bench.{name}"]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    # What libraries print comes before.
    figures: dict[str, Any] = json.loads(ended.stdout[ended.stdout.index("\n{") + 1 if "\n{" in ended.stdout else 0 :])
    return figures


if __name__ == "__main__":
    main()

"""Runs all benchmarks of the stages one after the other, each in a separate process: `make bench-trainer`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunemill_dev.background import in_own_process
from tunemill_dev.bench import counters, evaluate, prepare, train

OUTPUT = Path("build/bench/trainer.json")


def main() -> None:
    """Print the results and write them to `build/bench/trainer.json`."""
    ratios = {**_measured(train.measure), **_measured(evaluate.measure)}
    counted = _measured(counters.measure)
    figures = json.dumps({"ratios": ratios, "counters": counted, "prepare": _measured(prepare.measure)}, indent=2)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(figures + "\n")
    print(figures)


def _measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    print(f"{measure.__module__} …", file=sys.stderr, flush=True)
    return in_own_process(measure).result()


if __name__ == "__main__":
    main()

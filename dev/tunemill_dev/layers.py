"""Runs layers of the tests one after the other, and says how long each took and which tests were the slowest.

`layers.py MAKE NAME… [-- NAME…]`: up to `--`, a layer that fails ends the run. The layers after it all run, so that one
run shows all failures.

`make test` calls it as a script, before the environment is installed, so it needs the standard library only.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMES = Path("build", "test-times.jsonl")
"""One line for each run of pytest, written by tests/timing.py."""
SLOWEST = 30


@dataclass(frozen=True)
class Layer:
    """What a layer took.

    Attributes:
        name: its target in the Makefile.
        seconds: by the clock.
        processor_seconds: of all processes that it started and waited for.
        status: its exit status.
    """

    name: str
    seconds: float
    processor_seconds: float
    status: int = 0


def run(make: str, name: str) -> Layer:
    """Run a target of the Makefile."""
    began, before = time.monotonic(), _processor_seconds()
    status = subprocess.run([make, name], check=False).returncode
    return Layer(name, time.monotonic() - began, _processor_seconds() - before, status)


def table(layers: Iterable[Layer]) -> str:
    """Return a Markdown table of layers, and their sum."""
    rows = [*layers]
    rows.append(Layer("in all", sum(row.seconds for row in rows), sum(row.processor_seconds for row in rows)))
    lines = [f"| {row.name} | {row.seconds / 60:.1f} | {row.processor_seconds / 60:.1f} |" for row in rows]
    return "\n".join(["| layer | minutes | CPU minutes |", "|---|---|---|", *lines])


def slowest(runs: Iterable[dict[str, Any]], count: int = SLOWEST) -> str:
    """Return a Markdown table of the tests that took longest, each with its fixtures."""
    tests = [(name, *times) for run in runs for name, times in run["tests"].items()]
    tests.sort(key=lambda test: max(test[1:]), reverse=True)
    lines = [f"| {seconds:.1f} | {processor:.1f} | `{name}` |" for name, seconds, processor in tests[:count]]
    return "\n".join(["| seconds | CPU seconds | test |", "|---|---|---|", *lines])


def main(make: str, names: Sequence[str]) -> int:
    """Run the layers; return the exit status of the first that failed, or 0."""
    TIMES.unlink(missing_ok=True)
    layers: list[Layer] = []
    go_on = False
    for name in names:
        if name == "--":
            go_on = True
            continue
        layers.append(run(make, name))
        if layers[-1].status and not go_on:
            break
    runs = [json.loads(line) for line in TIMES.read_text().splitlines()] if TIMES.exists() else []
    print(f"\n{table(layers)}\n\nThe slowest tests, with their fixtures:\n\n{slowest(runs)}")
    failed = [layer for layer in layers if layer.status]
    if failed:
        print(f"\nfailed: {', '.join(layer.name for layer in failed)}", file=sys.stderr)
    return failed[0].status if failed else 0


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

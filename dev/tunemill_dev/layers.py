"""Runs layers of the tests, and says how long each took and which tests were the slowest.

`layers.py MAKE NAME… [-- NAME… -- NAME…]`: the first group until one of its layers fails, then the other two side by
side. All layers of those run, also after one has failed. The second group mostly waits for servers; the third computes
and has a lower priority, so that what the second waits for is served as if the machine were idle.

`make test` calls it as a script, before the environment is installed, so it needs the standard library only.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

TIMES = Path("build", "test-times.jsonl")
"""One line for each run of pytest, written by tests/timing.py."""
SLOWEST = 30
LOW_PRIORITY = ("nice", "-n", "10")


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


def run(command: Sequence[str], name: str) -> Layer:
    """Run a target of the Makefile and print its output as it comes, with the name before each line."""
    began = time.monotonic()
    process = subprocess.Popen([*command, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    reader = threading.Thread(target=_print, args=(name, process.stdout), daemon=True)
    reader.start()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    reader.join(timeout=10)  # not for ever: a cluster that the layer started may hold the pipe
    return Layer(name, time.monotonic() - began, used.ru_utime + used.ru_stime, process.returncode)


def table(layers: Iterable[Layer], seconds: float) -> str:
    """Return a Markdown table of layers, and of the whole run, which took `seconds`."""
    rows = [*layers]
    rows.append(Layer("in all", seconds, sum(row.processor_seconds for row in rows)))
    lines = [f"| {row.name} | {row.seconds / 60:.1f} | {row.processor_seconds / 60:.1f} |" for row in rows]
    return "\n".join(["| layer | minutes | CPU minutes |", "|---|---|---|", *lines])


def slowest(runs: Iterable[dict[str, Any]], count: int = SLOWEST) -> str:
    """Return a Markdown table of the tests that took longest, each with its fixtures."""
    tests = [(name, *times) for run in runs for name, times in run["tests"].items()]
    tests.sort(key=lambda test: max(test[1:]), reverse=True)
    lines = [f"| {seconds:.1f} | {processor:.1f} | `{name}` |" for name, seconds, processor in tests[:count]]
    return "\n".join(["| seconds | CPU seconds | test |", "|---|---|---|", *lines])


def main(make: str, names: Sequence[str]) -> int:
    """Run the groups of layers; return the exit status of the first that failed, or 0."""
    TIMES.unlink(missing_ok=True)
    began = time.monotonic()
    first, *others = [[*group] for apart, group in groupby(names, "--".__eq__) if not apart]
    layers = []
    for name in first:
        layers.append(run([make], name))
        if layers[-1].status:
            others = []
            break
    with ThreadPoolExecutor() as pool:
        for group in pool.map(_run_all, ([make], [*LOW_PRIORITY, make]), others):
            layers += group
    runs = [json.loads(line) for line in TIMES.read_text().splitlines()] if TIMES.exists() else []
    print(f"\n{table(layers, time.monotonic() - began)}\n\nThe slowest tests, with their fixtures:\n\n{slowest(runs)}")
    failed = [layer for layer in layers if layer.status]
    if failed:
        print(f"\n{', '.join(layer.name for layer in failed)} failed", file=sys.stderr)
    return failed[0].status if failed else 0


def _run_all(command: Sequence[str], names: Iterable[str]) -> list[Layer]:
    return [run(command, name) for name in names]


def _print(name: str, lines: IO[str]) -> None:
    for line in lines:
        print(f"{name}: {line}" if line.strip() else line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

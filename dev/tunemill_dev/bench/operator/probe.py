"""Runs the operator and measures it from inside: `python -m tunemill_dev.bench.operator.probe OUTPUT run …`.

When the operator has ended, OUTPUT contains as JSON: the CPU time, the pauses of the garbage collector, the delays of
timers in the event loop, and, with `--profile` before OUTPUT, the CPU time by package.
"""

import asyncio
import cProfile
import gc
import json
import pstats
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunemill_operator import __main__ as operator
from tunemill_operator import app
from tunemill_operator.settings import Settings

BEAT_SECONDS = 0.005
LATE_MS = (5, 10, 20, 50, 100)
_PACKAGES = (
    ("kopf", "kopf"),
    ("tunemill_operator/engine", "engine"),
    ("tunemill_operator", "operator, other than engine"),
    ("tunemill_api", "API models"),
    ("pydantic", "pydantic"),
    ("aiohttp", "aiohttp"),
    ("kubernetes", "kubernetes client"),
    ("asyncio", "asyncio and TLS"),
    ("/json/", "json"),
    ("logging", "logging"),
    ("prometheus_client", "metrics"),
)


@dataclass
class Pauses:
    """Records the garbage collections of a process."""

    count: Counter[int] = field(default_factory=Counter)
    """By generation."""
    total: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Milliseconds of CPU time by generation."""
    longest_ms: float = 0.0
    _began: float = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Record the start or the end of a collection."""
        if phase == "start":
            self._began = time.thread_time()
            return
        took = 1000 * (time.thread_time() - self._began)
        self.count[info["generation"]] += 1
        self.total[info["generation"]] += took
        self.longest_ms = max(self.longest_ms, took)


def main() -> None:
    """Run the operator with the arguments after OUTPUT."""
    profiled = sys.argv[1] == "--profile"
    output, arguments = Path(sys.argv[1 + profiled]), sys.argv[2 + profiled :]
    sys.argv = ["tunemill-operator", *arguments]
    pauses, late = Pauses(), Counter[str]()
    gc.callbacks.append(pauses)
    vars(operator)["run"] = _watched(app.run, late)
    profile = cProfile.Profile(time.thread_time) if profiled else None
    status = profile.runcall(operator.main) if profile else operator.main()
    figures = {
        "cpu_seconds": round(time.process_time(), 3),
        "collections": {
            str(generation): {"count": count, "ms": round(pauses.total[generation], 1)}
            for generation, count in sorted(pauses.count.items())
        },
        "longest_collection_ms": round(pauses.longest_ms, 1),
        "beats_late_by_ms": late,
        "cpu_share_by_package": _shares(profile) if profile else {},
    }
    output.write_text(json.dumps(figures, indent=2) + "\n")
    raise SystemExit(status)


def _watched(
    run: Callable[[Settings], Coroutine[Any, Any, int]], late: Counter[str]
) -> Callable[[Settings], Coroutine[Any, Any, int]]:
    """Return the operator's main coroutine with a periodic timer that measures the delay of the event loop."""

    async def watched(settings: Settings) -> int:
        beat = asyncio.create_task(_beat(late))
        try:
            return await run(settings)
        finally:
            beat.cancel()
            with suppress(asyncio.CancelledError):
                await beat

    return watched


async def _beat(late: Counter[str]) -> None:
    """Measure the delay of a timer in milliseconds of this process's CPU time, without the time waiting for a core."""
    while True:
        due, used = time.monotonic() + BEAT_SECONDS, time.thread_time()
        await asyncio.sleep(BEAT_SECONDS)
        delay = 1000 * min(time.monotonic() - due, time.thread_time() - used)
        late["beats"] += 1
        for limit in LATE_MS:
            late[f">{limit}"] += delay > limit


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """Return the share of each package in percent. Built-in functions count for the package that calls them."""
    seconds: dict[str, float] = defaultdict(float)
    stats: Any = pstats.Stats(profile)
    for (file, _, _), (_, _, own, _, callers) in stats.stats.items():
        if file == "~" and callers:
            for (caller, _, _), (_, _, own_by_caller, _) in callers.items():
                seconds[_package(caller)] += own_by_caller
        else:
            seconds[_package(file)] += own
    whole = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: item[1], reverse=True)
    return {name: round(100 * each / whole, 1) for name, each in ordered}


def _package(file: str) -> str:
    return next((name for part, name in _PACKAGES if part in file), "other")


if __name__ == "__main__":
    main()

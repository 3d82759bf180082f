"""Measures the operators in turns, and writes the results to `build/bench/operator.json`.

Every turn has a separate API server without controllers. It compares the work of the operators, from an object to the
child that the operator creates for it. This process generates the load, on the same cores for all.
"""

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunemill_dev.bench.operator import load
from tunemill_dev.bench.operator.api import Api
from tunemill_dev.bench.operator.contenders import Contender, Kubeflow, Ours, Running, api_server_cpu_seconds
from tunemill_dev.bench.operator.nodes import simulated_nodes
from tunemill_dev.cluster import control_plane

OUTPUT = Path("build/bench/operator.json")
BURSTS = (200, 500, 1000)
RATES = (5, 10, 30)
STEADY_SECONDS = 15.0
RESTARTS = (1_000, 5_000, 10_000)
SIMULATED = 1_000
"""Objects that go from apply to Succeeded on simulated nodes."""
PEERS_RESTART = 1_000
"""The number of objects with which Kubeflow Trainer is restarted. More objects take it too long."""
RAISED = {"qps": 500, "burst": 500}
"""Client limits that have no effect in this benchmark."""


@dataclass
class Figures:
    """The measurements of one operator, one value per turn."""

    burst: dict[int, list[float]] = field(default_factory=dict)
    """Objects per second, by the size of the burst."""
    latency: dict[int, list[float]] = field(default_factory=dict)
    """Milliseconds by rate per second, for all arrivals of all turns."""
    cpu: list[float] = field(default_factory=list)
    """Milliseconds of CPU time per object of the largest burst."""
    steady_cpu: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """Milliseconds of CPU time per object of the operator and of the API server, by rate per second."""
    base_mb: list[float] = field(default_factory=list)
    """Resident memory before the first object."""
    peak_mb: list[float] = field(default_factory=list)
    """Highest resident memory after all objects of a turn."""
    objects: int = 0
    """The number of these objects."""
    restart: dict[int, list[float]] = field(default_factory=dict)
    """Seconds, by the number of objects."""
    memory_mb: dict[int, float] = field(default_factory=dict)
    """Resident memory of a fresh start, by the number of objects."""

    def summary(self) -> dict[str, Any]:
        """Return medians over turns and percentiles over arrivals."""
        return {
            "burst_per_s": {str(size): round(statistics.median(each), 1) for size, each in self.burst.items()},
            "latency_ms": {
                str(rate): {"p50": round(statistics.median(each), 1), "p99": round(_percentile(each, 99), 1)}
                for rate, each in self.latency.items()
            },
            "cpu_ms_per_object": round(statistics.median(self.cpu), 2),
            "steady_cpu_ms_per_object": {
                str(rate): {
                    "operator": round(statistics.median(operator for operator, _ in each), 1),
                    "api_server": round(statistics.median(server for _, server in each), 1),
                }
                for rate, each in self.steady_cpu.items()
            },
            "base_mb": round(statistics.median(self.base_mb)),
            "peak_mb": round(statistics.median(self.peak_mb)),
            "objects": self.objects,
            "restart_s": {str(count): round(statistics.median(each), 1) for count, each in self.restart.items()},
        }


def main() -> None:
    """Print the results and write them to `build/bench/operator.json`."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.bench.operator", description=__doc__)
    parser.add_argument("--turns", type=int, default=3, help="number of turns of each operator")
    parser.add_argument("--quick", action="store_true", help="run one small turn of each, as a test")
    options = parser.parse_args()
    figures = asyncio.run(_measure(1 if options.quick else options.turns, quick=options.quick))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


async def _measure(turns: int, *, quick: bool) -> dict[str, Any]:
    bursts, seconds = ((20, 50), 3.0) if quick else (BURSTS, STEADY_SECONDS)
    restarts = (100, 200) if quick else RESTARTS
    ours, default, raised, limit = Figures(), Figures(), Figures(), []
    for turn in range(turns):
        _say(f"turn {turn + 1} of {turns}")
        # The order changes, so that a change of the machine's speed affects all of them.
        contenders = [(Ours(), ours), (Kubeflow("default"), default), (Kubeflow("raised", RAISED), raised)]
        for contender, figures in contenders[turn % 3 :] + contenders[: turn % 3]:
            limit += await _turn(contender, figures, bursts, seconds)
    await _many(ours, restarts)
    simulated = await _simulated(100 if quick else SIMULATED)
    largest, most = bursts[-1], restarts[-1]
    faster, base = statistics.median(ours.burst[largest]), statistics.median(ours.base_mb)
    return {
        "ours": ours.summary() | {"memory_mb": ours.memory_mb},
        "kubeflow": {"default": default.summary(), "raised": raised.summary()},
        "same_writes_per_s": round(statistics.median(limit), 1),
        "ratios": {
            "burst_vs_default": round(faster / statistics.median(default.burst[largest]), 2),
            "burst_vs_raised": round(faster / statistics.median(raised.burst[largest]), 2),
            "burst_vs_same_writes": round(faster / statistics.median(limit), 2),
            "p99_vs_raised": {
                str(rate): round(_percentile(ours.latency[rate], 99) / _percentile(raised.latency[rate], 99), 2)
                for rate in RATES
            },
            "cpu_per_object_vs_raised": round(statistics.median(ours.cpu) / statistics.median(raised.cpu), 2),
        },
        "restart_s": {str(count): round(ours.restart[count][0], 1) for count in restarts if count != 5_000},
        "mb": {"base": round(base), "per_1000": round(1000 * (ours.memory_mb[most] - base) / most, 1)},
        "simulated": simulated,
    }


async def _turn(contender: Contender, figures: Figures, bursts: tuple[int, ...], seconds: float) -> list[float]:
    """Measure one operator on a separate API server. For Tunemill, return the speed of its writes alone."""
    with TemporaryDirectory() as path, control_plane(Path(path, "plane"), controllers=False) as plane:
        folder = Path(path)
        async with Api.of(plane.kubeconfig) as api:
            await contender.install(api)
            running = await contender.start(api, plane.kubeconfig, folder)
            try:
                await load.burst(api, contender, "first", 5)  # modules that are loaded at first use are not counted
                figures.base_mb.append(running.memory_mb())
                figures.objects = 5
                for rate in RATES:
                    before = _cpu_ms(running, folder)
                    latencies = await load.steady(api, contender, f"steady-{rate}", rate, seconds)
                    await load.settled(running)
                    used = [
                        (now - then) / len(latencies)
                        for now, then in zip(_cpu_ms(running, folder), before, strict=True)
                    ]
                    figures.objects += len(latencies)
                    figures.latency.setdefault(rate, []).extend(latencies)
                    figures.steady_cpu.setdefault(rate, []).append((used[0], used[1]))
                for count in bursts:
                    await load.settled(running)  # pending work of an earlier load must not count for this one
                    burst_began, figures.objects = running.cpu_seconds(), figures.objects + count
                    took = await load.burst(api, contender, f"burst-{count}", count)
                    figures.burst.setdefault(count, []).append(count / took)
                    _say(f"  {contender.name}: {count / took:.1f} objects/s in a burst of {count}")
                await load.settled(running)
                figures.cpu.append(1000 * (running.cpu_seconds() - burst_began) / bursts[-1])
                figures.peak_mb.append(running.memory_mb(peak=True))
                if isinstance(contender, Kubeflow):
                    running, took = await load.restart(api, contender, running, plane.kubeconfig, folder)
                    figures.restart.setdefault(PEERS_RESTART, []).append(took)
            finally:
                await running.stop()
            if not isinstance(contender, Ours):
                return []
            count = bursts[-1]
            return [count / await load.same_writes(api, contender, f"burst-{count}-0", count)]


async def _many(figures: Figures, counts: tuple[int, ...]) -> None:
    """Restart Tunemill's operator with increasing numbers of objects."""
    with TemporaryDirectory() as path, control_plane(Path(path, "plane"), controllers=False) as plane:
        async with Api.of(plane.kubeconfig) as api:
            contender = Ours()
            await contender.install(api)
            running = await contender.start(api, plane.kubeconfig, Path(path))
            try:
                there = 0
                for count in counts:
                    await load.burst(api, contender, f"many-{count}", count - there)
                    await load.settled(running)
                    running, took = await load.restart(api, contender, running, plane.kubeconfig, Path(path))
                    figures.restart[count] = [took]
                    await load.settled(running)
                    figures.memory_mb[count] = round(running.memory_mb(peak=True))
                    _say(f"  Tunemill: {took:.1f} s until a new object has its Job, with {count} objects")
                    there = count
            finally:
                await running.stop()


async def _simulated(count: int) -> dict[str, float]:
    """Run objects from apply to Succeeded on simulated nodes, with all Kubernetes controllers."""
    with TemporaryDirectory() as path, control_plane(Path(path, "plane")) as plane:
        async with Api.of(plane.kubeconfig) as api, simulated_nodes(api, plane.kubeconfig, Path(path)):
            contender = Ours()
            await contender.install(api)
            running = await contender.start(api, plane.kubeconfig, Path(path))
            try:
                before = running.cpu_seconds()
                took = await load.finish(api, contender, "whole", count)
                _say(f"  Tunemill: {count} objects from apply to Succeeded in {took:.0f} s")
                return {
                    "objects": count,
                    "seconds": round(took, 1),
                    "cpu_ms_per_object": round(1000 * (running.cpu_seconds() - before) / count, 1),
                    "peak_mb": round(running.memory_mb(peak=True)),
                }
            finally:
                await running.stop()


def _cpu_ms(running: Running, folder: Path) -> tuple[float, float]:
    """Return the CPU time of the operator and of the API server so far."""
    return 1000 * running.cpu_seconds(), 1000 * api_server_cpu_seconds(folder)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

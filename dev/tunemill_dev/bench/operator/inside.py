"""Shows how the operator uses its CPU time: `python -m tunemill_dev.bench.operator.inside`.

Objects are created at a steady rate, then in a burst, on a real API server without controllers. The output is the CPU
time per object, which, unlike latency, depends little on other load. `--profile` also shows the time by package.
"""

import argparse
import asyncio
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tunemill_dev.bench.operator import load
from tunemill_dev.bench.operator.api import Api
from tunemill_dev.bench.operator.contenders import Ours
from tunemill_dev.cluster import control_plane


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(prog="python -m tunemill_dev.bench.operator.inside", description=__doc__)
    parser.add_argument("--rate", type=int, default=30, help="objects per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="for so long")
    parser.add_argument("--burst", type=int, default=500, help="objects of the burst")
    parser.add_argument("--profile", action="store_true", help="show the CPU time by package; takes twice as long")
    options = parser.parse_args()
    figures = asyncio.run(_measure(options.rate, options.seconds, options.burst, profile=options.profile))
    print(json.dumps(figures, indent=2))


async def _measure(rate: int, seconds: float, burst: int, *, profile: bool) -> dict[str, Any]:
    with TemporaryDirectory() as path, control_plane(Path(path, "plane"), controllers=False) as plane:
        folder, figures = Path(path), dict[str, Any]()
        async with Api.of(plane.kubeconfig) as api:
            ours = Ours(probe=folder / "probe.json", profile=profile)
            await ours.install(api)
            running = await ours.start(api, plane.kubeconfig, folder)
            try:
                await load.burst(api, ours, "first", 5)
                await load.settled(running)
                before = running.cpu_seconds()
                latencies = await load.steady(api, ours, "steady", rate, seconds)
                await load.settled(running)
                centiles = statistics.quantiles(latencies, n=100)
                figures["steady"] = {
                    "cpu_ms_per_object": round(1000 * (running.cpu_seconds() - before) / len(latencies), 2),
                    "latency_ms": {"p50": round(centiles[49], 1), "p99": round(centiles[98], 1)},
                }
                before = running.cpu_seconds()
                took = await load.burst(api, ours, "burst", burst)
                await load.settled(running)
                figures["burst"] = {
                    "cpu_ms_per_object": round(1000 * (running.cpu_seconds() - before) / burst, 2),
                    "per_s": round(burst / took, 1),
                }
            finally:
                await running.stop()
        figures["inside"] = json.loads((folder / "probe.json").read_text())
        return figures


if __name__ == "__main__":
    main()

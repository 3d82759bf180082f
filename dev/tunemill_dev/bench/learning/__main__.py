"""Measures what each switch of `dataset.augmentation` gains: `make bench-learning`.

For every seed, a small base model is fine-tuned on generated rows without augmentation (plain), with its defaults
(auto), and with one switch at a time. The models are evaluated as suites, on rows that none of them has seen:

- same_tools: like the training rows.
- unseen_tools: tools that are in no training row.
- more_tools: the tools of the training rows, among eight instead of two.
- irrelevance: no offered tool fits.
- parallel: two calls in one reply.

A gain is the fraction of right replies minus that of plain fine-tuning with the same seed: the mean over the seeds,
with a 95 % confidence interval by Student's t. The results are written to `build/bench/learning.json`.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tunemill_dev.bench.learning import data
from tunemill_dev.bench.learning.models import PLAIN, VARIANTS, Rates, measured
from tunemill_dev.bench.learning.reader import cached_reader

OUTPUT = Path("build/bench/learning.json")
SEEDS = 5
_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for two-sided 95 % intervals with 1, 2, … degrees of freedom."""


def main() -> None:
    """Train and evaluate all models, print the gains and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, choices=range(2, len(_QUANTILES) + 2), default=SEEDS, metavar="N")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="variants beside plain")
    options = parser.parse_args()
    base = cached_reader()
    variants = [PLAIN, *(name for name in options.only if name != PLAIN)]
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(Path(folder), base, name, seed) for seed in range(options.seeds) for name in variants]
        # A process per model, because stages configure libraries for their process.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
            found = list(pool.map(measured, *zip(*tasks, strict=True)))
    rates = {name: [result for task, result in zip(tasks, found, strict=True) if task[2] == name] for name in variants}
    results: dict[str, Any] = {
        "rates": {name: {each: _mean(several, each) for each in data.SETS} for name, several in rates.items()},
        **{name: _gains(rates[name], rates[PLAIN]) for name in variants if name != PLAIN},
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(results, indent=2) + "\n")
    print(_table(results))


def _gains(rates: Sequence[Rates], plain: Sequence[Rates]) -> dict[str, dict[str, float]]:
    """Return the gain over plain fine-tuning on each set, with its interval."""
    gains = {}
    for name in data.SETS:
        differences = [one[name] - other[name] for one, other in zip(rates, plain, strict=True)]
        mean, count = statistics.mean(differences), len(differences)
        half = _QUANTILES[count - 2] * statistics.stdev(differences) / math.sqrt(count)
        gains[name] = {"gain": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}
    return gains


def _mean(rates: Sequence[Rates], name: str) -> float:
    return round(statistics.mean(each[name] for each in rates), 4)


def _table(results: Mapping[str, Any]) -> str:
    """Return the gains as Markdown, in percentage points."""
    lines = ["| | " + " | ".join(data.SETS) + " |", "|---" * (1 + len(data.SETS)) + "|"]
    plain = results["rates"][PLAIN]
    lines.append(f"| {PLAIN}: right replies | " + " | ".join(f"{100 * plain[name]:.0f} %" for name in data.SETS) + " |")
    for variant in (name for name in results if name != "rates"):
        cells = [
            f"{100 * each['gain']:+.0f} ({100 * each['low']:+.0f} to {100 * each['high']:+.0f})"
            for each in (results[variant][name] for name in data.SETS)
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

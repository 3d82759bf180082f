"""Runs the complete GPU check: `python -m tunemill_dev.gpu_check`, from a checkout or an installation.

It requires only PyTorch with CUDA and this repository. Parts that need a missing library are skipped with its name.
Writes build/gpu/report.json, and a table for docs/performance.md to build/gpu/table.md.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tunemill_api.failures import ExitCode
from tunemill_trainer.gpu_check import command
from tunemill_trainer.gpu_check.command import Part

FOLDER = Path("build/gpu")
_MODULE = "tunemill_dev.gpu_check.parts"
_BASELINES = ("tutorial", "TRL defaults", "TRL packing")


def main() -> int:
    """Run the check. Return 0 if no part failed, 70 if a part failed, 71 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="(default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="use only models with two narrow layers")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="for the report (default: %(default)s)")
    options = parser.parse_args()
    if options.device == "cuda" and (problem := command.without_gpu()):
        print(f"gpu-check: there is no GPU to check: {problem}. Try it with --device cpu --small", file=sys.stderr)
        return ExitCode.NODE_BROKEN
    report, table = options.output / "report.json", options.output / "table.md"
    return command.check(parts(options.device, small=options.small), options.minutes, None, report, table)


def parts(device: str, *, small: bool) -> list[Part]:
    """Return all parts, the most important first, because the time limit may stop the last ones."""
    found = [*command.small_parts(device, only_small=small), _publish(device)]
    if small:
        return [*found, *(_baseline(name, found[-2], seconds=600) for name in _BASELINES)]
    measured = command.full_parts()
    # Baselines are compared with the 2B model, which the targets of docs/performance.md refer to.
    return [*found, measured[0], *(_baseline(name, measured[0], seconds=60) for name in _BASELINES), *measured[1:]]


def _publish(device: str) -> Part:
    settings = {"kind": "publish", "device": device, "shape": "qwen3-0.6b", "small": True, "method": "LoRA"}
    more = {"batch": 4, "steps": 3, "cases": 2, "newTokens": 4, "offline": "0"}
    return Part("publish to a local Hub", 120 if device == "cuda" else 600, {**settings, **more}, _MODULE)


def _baseline(name: str, ours: Part, seconds: int) -> Part:
    settings = {**ours.settings, "kind": name, "cases": 0}
    return replace(ours, name=f"{ours.name}: {name}", seconds=seconds, settings=settings, module=_MODULE)


if __name__ == "__main__":
    sys.exit(main())

"""`tunemill gpu-check`: checks that training works on one GPU, in minutes and without a network.

tunemill gpu-check
tunemill gpu-check --full --minutes 10 --report report.json
tunemill gpu-check --device cpu --small
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tunemill_api.failures import ExitCode

from tunemill_trainer.commands import output
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.option_types import positive_number
from tunemill_trainer.process import bars, console
from tunemill_trainer.process.bars import ProgressBar

PARTS_MODULE: Final = "tunemill_trainer.gpu_check.parts"
_FAMILIES = ("functiongemma-270m", "qwen3-0.6b", "gemma-2-2b", "llama-3.1-8b")
"""One shape of each architecture."""
_ENOUGH_SECONDS = 60
_SHOWN_LINES = 20
"""The number of lines to show of the output of a failed part."""


@dataclass(frozen=True)
class Part:
    """One part of the check.

    Attributes:
        name: the display name.
        seconds: the time limit.
        settings: the settings for its process.
        module: the module to run with the settings.
    """

    name: str
    seconds: int
    settings: Mapping[str, Any]
    module: str = PARTS_MODULE


@dataclass(frozen=True)
class Result:
    """The result of a part.

    Attributes:
        name: the name of the part.
        status: passed, failed or skipped.
        reason: why it failed or was skipped.
        seconds: its duration.
        figures: its measurements.
    """

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the result for the report."""
        return {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "seconds": round(self.seconds, 1),
            "figures": dict(self.figures),
        }


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument(
        "--device",
        metavar="DEVICE",
        choices=["cuda", "cpu"],
        default="cuda",
        help="cuda or cpu; cpu tries the check itself (default: %(default)s)",
    )
    command.add_argument("--small", action="store_true", help="use only models of two narrow layers")
    command.add_argument("--full", action="store_true", help="also measure models up to 8B, all methods and formats")
    command.add_argument(
        "--minutes",
        metavar="NUMBER",
        type=positive_number,
        default=10.0,
        help="time limit; parts for which no time is left are skipped (default: %(default)s)",
    )
    command.add_argument("--report", metavar="FILE", type=Path, help="write all results to this file as JSON")
    command.add_argument("--table", metavar="FILE", type=Path, help="write the measurements to this file as Markdown")
    command.add_argument(
        "--work",
        metavar="FOLDER",
        type=Path,
        help="folder to work in; needs 25 GB with --full (default: a temporary folder)",
    )
    output.add_json_option(command, "print the results as JSON when the check ends, instead of text for each part")


def main(options: argparse.Namespace) -> int:
    """Run the check; return 0 when nothing failed, 70 when a part failed, 71 without a GPU."""
    if options.device == "cuda" and (problem := without_gpu()):
        message = f"no GPU can be used: {problem}. Install a driver, or try the check with --device cpu --small."
        return output.fail("gpu-check", message, ExitCode.NODE_BROKEN)
    parts = small_parts(options.device, only_small=options.small)
    if options.full and not options.small:
        parts = [*parts, *full_parts()]
    return check(parts, options.minutes, options.work, options.report, options.table, as_json=options.json)


def check(
    parts: Sequence[Part],
    minutes: float,
    work: Path | None,
    report: Path | None,
    markdown: Path | None,
    *,
    as_json: bool = False,
) -> int:
    """Run parts, print how each ended, write the reports, and return the exit code."""
    results: list[Result] = []
    with ProgressBar("checking", len(parts), "parts") as bar:
        for result in run_parts(parts, minutes * 60, work):
            results.append(result)
            if not as_json:
                with bars.printing():
                    _show(result)
            bar.advance_to(len(results))
            # After each part, so that the measurements exist whatever ends the check.
            _write(report, json.dumps(_as_json(results), indent=2) + "\n")
            _write(markdown, table(results))
    failed = [result.name for result in results if result.status == "failed"]
    if as_json:
        output.show_json(_as_json(results))
    else:
        console.show(f"{len(results)} parts, {len(failed)} failed" + (f": {', '.join(failed)}" if failed else ""))
    return ExitCode.INTERNAL_ERROR if failed else ExitCode.DONE


def _show(result: Result) -> None:
    reason = f": {result.reason}" if result.reason else ""
    print(f"{result.status:<8} {result.seconds:6.1f} s  {result.name}{reason}", flush=True)
    for name, value in result.figures.items():
        print(f"                   {name}: {value}", flush=True)


def _as_json(results: Sequence[Result]) -> dict[str, Any]:
    return {"results": [result.to_json() for result in results]}


def without_gpu() -> str:
    """Return why no GPU can be used, found in a separate process; an empty text when one can."""
    code = "import torch; torch.cuda.init(); print(torch.cuda.get_device_name(0))"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]


def small_parts(device: str, *, only_small: bool) -> list[Part]:
    """Return the parts that check training; without `only_small`, also a measurement with the smallest real model."""
    tiny = {"device": device, "small": True, "method": "LoRA", "batch": 4, "steps": 6}
    first = {**tiny, "shape": _FAMILIES[1]}
    # The limit on a CPU is generous, because nothing is measured there and it may be busy.
    seconds = 90 if device == "cuda" else 600
    parts = [Part("environment", 120, {"kind": "environment", "device": device})]
    families = _FAMILIES if device == "cuda" else _FAMILIES[1:2]
    parts += [
        Part(f"same losses as on the CPU, {shape}", seconds, {**tiny, "kind": "equal", "shape": shape, "steps": 4})
        for shape in families
    ]
    parts += [
        Part("resume after SIGTERM", seconds, {**first, "kind": "resume"}),
        Part("speed, small model", seconds, {**first, "kind": "speed", "cases": 4, "newTokens": 8}),
    ]
    if device == "cuda" and not only_small:
        real = {"device": device, "shape": "functiongemma-270m", "method": "LoRA", "batch": 8}
        parts += [
            Part("out of memory is survived", 90, {**real, "kind": "out of memory", "steps": 4}),
            _speed("functiongemma-270m", "LoRA", "None", "Auto", cases=64),
        ]
    return parts


def full_parts() -> list[Part]:
    """Return the measurements of real shapes, most important first: the last ones are skipped when time runs out."""
    return [
        _speed("gemma-2-2b", "LoRA", "None", "BF16", cases=64),
        _speed("llama-3.1-8b", "LoRA", "None", "BF16", seconds=150),
        _speed("llama-3.1-8b", "LoRA", "NF4", "BF16", seconds=120),
        _speed("qwen3-1.7b", "LoRA", "None", "BF16"),
        _speed("qwen3-0.6b", "Full", "None", "BF16"),
        _speed("qwen3-0.6b", "LoRA", "Int8", "FP16"),
        _speed("qwen3-0.6b", "LoRA", "None", "FP32"),
        _speed("qwen3-0.6b", "AdaLoRA", "None", "BF16"),
        _speed("qwen3-0.6b", "IA3", "None", "BF16"),
    ]


def _speed(shape: str, method: str, quantization: str, precision: str, *, cases: int = 0, seconds: int = 90) -> Part:
    settings = {
        "kind": "speed",
        "device": "cuda",
        "shape": shape,
        "method": method,
        "quantization": quantization,
        "precision": precision,
        "batch": 8,
        "steps": 12,
        "cases": cases,
        "newTokens": 128,
    }
    form = "" if quantization == "None" else f" {quantization}"
    return Part(f"speed, {shape} {method}{form} {precision}", seconds, settings)


def run_parts(parts: Sequence[Part], seconds: float, work: Path | None) -> Iterator[Result]:
    """Run parts in order, and yield each result as soon as it is available.

    Args:
        parts: the parts.
        seconds: time limit for all parts. A part is skipped with less than a minute left, unless its limit is lower.
        work: the work folder; None creates a temporary one.
    """
    deadline = time.monotonic() + seconds
    own = Path(tempfile.mkdtemp(prefix="gpu-check-")) if work is None else work
    try:
        for part in parts:
            left = deadline - time.monotonic()
            if left < min(part.seconds, _ENOUGH_SECONDS):
                yield Result(part.name, "skipped", f"no time left: it may take up to {part.seconds} s")
                continue
            yield _run(part, own, min(left, part.seconds))
    finally:
        if work is None:
            shutil.rmtree(own, ignore_errors=True)


def _run(part: Part, work: Path, seconds: float) -> Result:
    # One folder per shape, so that each base model is created once.
    small = "small-" if part.settings.get("small") else ""
    folder = work / f"{small}{part.settings.get('shape', 'none')}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps({**part.settings, "folder": str(folder)})
    begun = time.monotonic()
    # In a new session, so that all processes of a part can be killed together.
    with subprocess.Popen(
        [sys.executable, "-m", part.module, settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Result(part.name, "failed", f"not finished after {seconds:.0f} s", time.monotonic() - begun)
    took = time.monotonic() - begun
    lines = output.strip().splitlines()
    try:
        result = json.loads(lines[-1])
        if result["status"] == "failed":
            print("\n".join(lines[-_SHOWN_LINES - 1 : -1]), file=sys.stderr)
        return Result(part.name, result["status"], result["reason"], took, result.get("figures", {}))
    except (IndexError, ValueError, KeyError, TypeError):
        last = lines[-1] if lines else "no output"
        return Result(part.name, "failed", f"exited with code {process.returncode}: {last}", took)
    finally:
        for left in folder.glob("*-*"):
            shutil.rmtree(left, ignore_errors=True)


def table(results: Sequence[Result]) -> str:
    """Return the measurements as a Markdown table."""
    found: dict[str, Any] = next((dict(each.figures) for each in results if each.name == "environment"), {})
    where = found.get("gpu", "CPU")
    libraries = ", ".join(f"{name} {found.get(name, '?')}" for name in ("torch", "transformers", "trl", "peft"))
    lines = [
        f"{where}, {libraries}",
        "",
        "| run | tokens/s | utilization | peak MiB | estimate MiB | first step after s | evaluate tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        figures = result.figures
        if "tokensPerSecond" not in figures and not result.name.startswith("speed"):
            continue
        name = result.name.removeprefix("speed, ")
        if result.status != "passed":
            lines.append(f"| {name} | {result.status}: {result.reason} | | | | | |")
            continue
        used = figures.get("utilisation")
        cells = [
            f"{figures['tokensPerSecond']:,.0f}",
            f"{100 * used:.0f} %" if used is not None else "",
            figures.get("peakMib", ""),
            figures.get("estimateOfItMib", ""),
            figures.get("secondsToFirstStep", ""),
            figures.get("evaluatedTokensPerSecond", ""),
        ]
        lines.append(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


COMMAND = Command(
    name="gpu-check",
    task=Task.TRAIN,
    summary="check that training works on this machine's GPU, and measure its speed",
    add_options=add_options,
    main=main,
    examples=("gpu-check", "gpu-check --full --minutes 60 --report report.json", "gpu-check --device cpu --small"),
    exit_codes={
        ExitCode.INTERNAL_ERROR: "a part of the check failed; or an error in Tunemill",
        ExitCode.NODE_BROKEN: "no GPU can be used; or no space left on the disk",
    },
    json=JsonOutput(
        "one object; --report writes the same",
        (
            JsonField("results[].name", "string", "The part of the check."),
            JsonField("results[].status", "string", "`passed`, `failed` or `skipped`."),
            JsonField("results[].reason", "string", "Why it has not passed; empty when it has."),
            JsonField("results[].seconds", "number", "How long it took."),
            JsonField("results[].figures", "object", "Its measurements by name; they differ between parts."),
        ),
    ),
    needs_training=True,
)

"""The parts of the GPU check. Each runs in a separate process, so that a crash or lack of memory ends that part only.

python -m tunemill_trainer.gpu_check.parts '{"kind": "resume", …}'
"""

import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from unittest import mock

from tunemill_trainer.gpu_check.shapes import SHAPES, SUPERVISED, Shape

Figures = dict[str, Any]
Settings = Mapping[str, Any]

_WARM = 2
"""The number of warmup steps, in which kernels are compiled and selected. They are not timed."""
_PEAK_TERAFLOPS: Final = {
    "H100 PCIe": 756,
    "H200": 989,
    "H100": 989,
    "B200": 2250,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "RTX 5090": 209,
    "RTX 4090": 165,
    "T4": 65,
}
"""Dense BF16 (T4: FP16) throughput from NVIDIA's data sheets, by a substring of the GPU's name."""


class CheckFailedError(Exception):
    """The check of a part failed."""


class NotSupportedError(Exception):
    """The part cannot run on this machine."""


def environment(settings: Settings) -> Figures:
    """Report the installed versions and the GPU, and compile and run a kernel."""
    import torch

    names = ("torch", "triton", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")
    figures: Figures = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            figures[name] = importlib.metadata.version(name)
    figures["missing"] = [name for name in names if name not in figures]
    figures["older"] = _older()
    if settings["device"] == "cpu":
        return figures
    gpu = torch.cuda.get_device_properties(0)
    figures |= {
        "gpu": gpu.name,
        "memoryMib": gpu.total_memory >> 20,
        "capability": f"{gpu.major}.{gpu.minor}",
        "cuda": torch.version.cuda,
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }
    one = torch.ones(256, 256, device="cuda", dtype=torch.float16)
    if float((one @ one)[0, 0]) != 256:
        raise CheckFailedError("the product of two matrices of ones is wrong")
    figures["triton compiles"] = _compiles()
    return figures


def equal(settings: Settings) -> Figures:
    """Compare the losses of a few steps with those on the CPU, in FP32 and without dropout."""
    deterministic = {**settings, "precision": "FP32", "dropout": "0"}
    cpu, here = (
        [entry["loss"] for entry in _train({**deterministic, "gpus": gpus})[1]]
        for gpus in (0, 1 if settings["device"] == "cuda" else 0)
    )
    worst = max(abs(one - other) / abs(one) for one, other in zip(cpu, here, strict=True))
    if not worst < 2e-3:
        raise CheckFailedError(f"the losses {here} differ from those on the CPU, {cpu}")
    return {"largest relative difference": worst, "steps": len(cpu)}


def resume(settings: Settings) -> Figures:
    """Stop a training by SIGTERM, resume it, and compare it with an uninterrupted one."""
    from tunemill_trainer.errors import Interrupted
    from tunemill_trainer.gpu_check.harness import Clock
    from tunemill_trainer.process.stop import StopSignal

    _, uninterrupted, _ = _train(settings, "uninterrupted")
    harness, spec = harness_of(settings, "resumed"), _spec(settings)
    stop, at = StopSignal(), int(settings["steps"]) // 2

    def run(clock: Clock, signals: StopSignal) -> tuple[Any, list[Figures]]:
        from tunemill_trainer.stages import train

        context = harness.context(spec, clock, signals)
        return train.run(context), _history(context)

    try:
        with stop.listening(lambda: os._exit(1), 60):
            run(Clock({at: lambda: os.kill(os.getpid(), signal.SIGTERM)}), stop)
    except Interrupted:
        pass
    else:
        raise CheckFailedError("SIGTERM did not stop the training")
    facts, history = run(Clock(), StopSignal())
    if not facts.resumed_from_step:
        raise CheckFailedError("the training restarted from the beginning after SIGTERM")
    worst = max(abs(one["loss"] - other["loss"]) for one, other in zip(uninterrupted, history, strict=True))
    if not worst < 0.05:
        raise CheckFailedError(f"after the resume, losses differ by {worst} from those of an uninterrupted training")
    return {"resumed from step": facts.resumed_from_step, "largest difference": worst}


def out_of_memory(settings: Settings) -> Figures:
    """Train with less memory than the fastest mode needs."""
    import torch

    if settings["device"] == "cpu":
        raise NotSupportedError("needs a GPU, whose memory PyTorch can limit")
    found = _estimate(settings)
    most = (2 * found.least_mib + found.full_speed_mib) / 3
    torch.cuda.set_per_process_memory_fraction(most / (torch.cuda.get_device_properties(0).total_memory >> 20))
    facts, _, _ = _train(settings)
    return {"fullSpeedMib": found.full_speed_mib, "givenMib": int(most), "steps": facts.steps, **peaks()}


def speed(settings: Settings) -> Figures:
    """Measure tokens per second, utilization and peak memory of train, and of evaluate if the settings have cases."""
    _, history, run = _train(settings)
    times = [when for when, _ in run["clock"].reports]
    seen = [run["harness"].lengths[at] for at in run["order"]]
    batch = int(settings["batch"])
    # The first report is for the first step.
    timed = seen[_WARM * batch : len(times) * batch]
    seconds = times[-1] - times[_WARM - 1]
    figures: Figures = {
        "tokensPerSecond": round(sum(timed) / seconds, 1),
        "secondsToFirstStep": round(times[0] - run["begun"], 1),
        "lastLoss": history[-1]["loss"],
        **_utilisation(settings, timed, seconds),
    }
    found = _estimate(settings)
    figures |= {"estimatedFullSpeedMib": found.full_speed_mib, "estimatedLeastMib": found.least_mib}
    if _on_gpu(settings):
        figures |= peaks()
        nearest = min(found.train, key=lambda need: abs(need.mib - figures["peakMib"]))
        figures |= {"nearestRung": str(nearest.mode), "estimateOfItMib": nearest.mib}
    if not math.isfinite(history[-1]["loss"]):
        raise CheckFailedError(f"the loss is {history[-1]['loss']}")
    return figures | (_evaluation(settings, run) if settings.get("cases") else {})


PARTS: Final[dict[str, Callable[[Settings], Figures]]] = {
    "environment": environment,
    "equal": equal,
    "resume": resume,
    "out of memory": out_of_memory,
    "speed": speed,
}
"""The function of a part, by its kind."""


def main(text: str, parts: Mapping[str, Callable[[Settings], Figures]] = PARTS) -> None:
    """Run a part and print its result as the last line."""
    settings = json.loads(text)
    # Set before huggingface_hub is imported.
    os.environ |= {"HF_HOME": str(Path(settings["folder"]) / "hub"), "HF_HUB_OFFLINE": settings.get("offline", "1")}
    result: Figures = {"status": "passed", "reason": ""}
    try:
        result["figures"] = parts[settings["kind"]](settings)
    except NotSupportedError as error:
        result |= {"status": "skipped", "reason": str(error)}
    except ModuleNotFoundError as error:
        result |= {"status": "skipped", "reason": f"{error.name} is not installed"}
    except ImportError as error:
        result |= {"status": "skipped", "reason": f"an installed library is too old: {error}"}
    except Exception as error:  # noqa: BLE001 - any error fails this part only
        if isinstance(error.__cause__, ImportError):
            result |= {"status": "skipped", "reason": f"a library is missing or too old: {error}"}
            print(json.dumps(result), flush=True)
            return
        traceback.print_exc()
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    sys.stderr.flush()
    print(json.dumps(result), flush=True)


def _older() -> list[str]:
    """Return the installed packages whose version differs from Tunemill's requirements."""
    from packaging.requirements import Requirement

    found = []
    for line in _pins():
        requirement = Requirement(line)
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                found.append(f"{requirement.name} {version}, expected {requirement.specifier}")
    return found


def _pins() -> list[str]:
    """Return the trainer's requirements, from the installed distribution or from the source tree."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.requires("tunemill") or []
    project = Path(__file__).parents[2] / "pyproject.toml"
    described = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    listed: list[str] = [*described["dependencies"], *described["optional-dependencies"]["train"]]
    return listed


def _compiles() -> bool:
    import torch

    compiled = torch.compile(lambda numbers: torch.nn.functional.gelu(numbers) * 2)
    numbers = torch.randn(1024, device="cuda")
    if not torch.allclose(compiled(numbers), torch.nn.functional.gelu(numbers) * 2, atol=1e-5):
        raise CheckFailedError("a kernel compiled by Triton gives a wrong result")
    return True


def shape_of(settings: Settings) -> Shape:
    """Return the model of a part."""
    shape = SHAPES[settings["shape"]]
    return shape.small() if settings.get("small") else shape


def _spec(settings: Settings) -> Any:  # noqa: ANN401
    from tunemill_trainer.gpu_check.harness import a_spec

    return a_spec({"gpus": 1 if settings["device"] == "cuda" else 0, **settings})


def harness_of(settings: Settings, name: str = "run") -> Any:  # noqa: ANN401
    """Create the environment of a part."""
    from tunemill_trainer.gpu_check.harness import set_up

    rows = int(settings["steps"]) * int(settings["batch"])
    return set_up(
        Path(settings["folder"]),
        shape_of(settings),
        name=f"{name}-{os.getpid()}",
        rows=rows,
        cases=int(settings.get("cases", 0)),
        device=settings["device"],
    )


def _train(settings: Settings, name: str = "run") -> tuple[Any, list[Figures], Figures]:
    """Run the stage; return its facts, its training log, and further data for measurements."""
    from tunemill_trainer.gpu_check.harness import Clock
    from tunemill_trainer.learn.order import row_order
    from tunemill_trainer.stages import train

    harness, spec, clock = harness_of(settings, f"{name}{settings.get('gpus', '')}"), _spec(settings), Clock()
    context = harness.context(spec, clock)
    _forget_memory(settings)
    begun = time.monotonic()
    facts = train.run(context)
    order = row_order(harness.lengths, spec.training.seed, facts.steps * spec.training.batch_size)
    return facts, _history(context), {"clock": clock, "harness": harness, "spec": spec, "order": order, "begun": begun}


def _forget_memory(settings: Settings) -> None:
    """Reset the peak memory: the base model's weights may have been created on the GPU."""
    if _on_gpu(settings):
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _history(context: Any) -> list[Figures]:  # noqa: ANN401
    from tunemill_trainer.learn import curve

    return [entry for entry in curve.read_record(context.folder("trained")) if "loss" in entry]


def _evaluation(settings: Settings, run: Figures) -> Figures:
    """Run evaluate, and measure the generated tokens per second, without the time to load the models."""
    from tunemill_trainer.gpu_check.harness import Clock
    from tunemill_trainer.stages import evaluate, replies

    tokens, seconds, generate = 0, 0.0, vars(replies)["generate"]

    def timed(*given: Any, **named: Any) -> list[list[int]]:  # noqa: ANN401
        nonlocal tokens, seconds
        begun = time.monotonic()
        generated: list[list[int]] = generate(*given, **named)
        seconds += time.monotonic() - begun
        tokens += sum(map(len, generated))
        return generated

    _forget_memory(settings)
    with mock.patch.object(replies, "generate", timed):
        facts = evaluate.run(run["harness"].context(run["spec"], Clock()))
    if facts.rows != int(settings["cases"]):
        raise CheckFailedError(f"{facts.rows} of {settings['cases']} cases were evaluated")
    figures: Figures = {"evaluateSeconds": round(seconds, 1), "evaluatedTokensPerSecond": round(tokens / seconds, 1)}
    return figures | ({f"evaluate {name}": mib for name, mib in peaks().items()} if _on_gpu(settings) else {})


def _on_gpu(settings: Settings) -> bool:
    return bool(settings["device"] == "cuda")


def peaks() -> Figures:
    """Return the peak memory of this process, and the current memory of all processes."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return {
        "peakMib": torch.cuda.max_memory_allocated() >> 20,
        "reservedMib": torch.cuda.max_memory_reserved() >> 20,
        "usedByProcessesMib": (total - free) >> 20,
    }


def _estimate(settings: Settings) -> Any:  # noqa: ANN401
    from transformers import AutoConfig

    from tunemill_trainer.learn import memory, memory_plan

    harness, spec = harness_of(settings, "estimate"), _spec(settings)
    lengths = memory_plan.lengths_of(spec, harness.prepared.dataset)
    return memory.estimate(AutoConfig.from_pretrained(harness.base), spec, 0, lengths)


def _utilisation(settings: Settings, lengths: list[int], seconds: float) -> Figures:
    """Return the model FLOPs utilization. Recomputation by gradient checkpointing does not count."""
    import torch

    config = shape_of(settings).config
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads, kept, head = (int(config[name]) for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    matrices = layers * width * (2 * heads * head + 2 * kept * head + 3 * int(config["intermediate_size"]))
    # FLOPs per weight and token: 2 forward, 2 for the gradient of activations, and 2 for that of trained weights.
    each = 6 if settings["method"] == "Full" else 4
    tokens = sum(lengths)
    flops = each * tokens * (matrices + SUPERVISED * width * int(config["vocab_size"]))
    # Causal attention: half of the scores, two products, one forward and two backward passes.
    flops += 3 * sum(2 * layers * heads * head * length * length for length in lengths)
    figures: Figures = {"modelTeraflops": round(flops / seconds / 1e12, 3)}
    if settings["device"] == "cuda":
        name = torch.cuda.get_device_name(0)
        peak = next((peak for part, peak in _PEAK_TERAFLOPS.items() if part in name), 0)
        if peak:
            figures["utilisation"] = round(flops / seconds / 1e12 / peak, 4)
    return figures


if __name__ == "__main__":
    main(sys.argv[1])

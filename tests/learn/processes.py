"""Stages in processes of their own, forked from one that has imported what they need: imports take most of their time.

What is read from the environment at an import, the settings of the Hugging Face libraries above all, each stage reads
again. That it works without this, in a new Python, is proven by `test_run.py` and `test_foreign_trainer.py`.
"""

import contextlib
import gc
import importlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TextIO

FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    [
        *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.distributed.tensor"),
        *("torch.utils.tensorboard", "bitsandbytes", "pandas", "pyarrow.parquet", "matplotlib.figure"),
        *(f"transformers.models.{family}.modeling_{family}" for family in ("gemma2", "gemma3", "llama", "qwen3")),
        *(f"tunemill_trainer.stages.{stage}" for stage in ("prepare", "train", "evaluate", "publish")),
        *("tunemill_trainer.learn.sft", "tunemill_trainer.commands.run"),
        *("peft.tuners.lora.bnb", "datasets.io.parquet", "matplotlib.backends.backend_agg", "boto3.s3.inject"),
    ]
)
_READ_THE_ENVIRONMENT = ("huggingface_hub.constants", "datasets.config")
"""The modules that do, of those that the fork server imports, and whose names others copy."""


class StageProcess:
    """A process like `python -m tunemill_trainer ARGUMENTS` with a separate environment."""

    def __init__(self, process: ForkServerProcess, log: Connection) -> None:
        self._process = process
        self._log = log

    def lines(self) -> Iterator[str]:
        """Yield its output line by line until it ends."""
        with open(os.dup(self._log.fileno()), encoding="utf-8", errors="replace") as log:  # noqa: PTH123 - no path
            yield from log

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        assert self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> int:
        """Return its exit code, negative for a signal."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"it has closed its log but still runs after {seconds} s"
        return self._process.exitcode


@contextlib.contextmanager
def started(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Iterator[StageProcess]:
    """Start it in a folder; it is killed if it has not ended with the block."""
    log, said = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=_work, args=(list(arguments), dict(environment), folder, said))
    process.start()
    said.close()
    try:
        yield StageProcess(process, log)
    finally:
        process.kill()
        process.join()
        log.close()


def _work(arguments: list[str], environment: dict[str, str], folder: Path | None, said: Connection) -> None:
    # What the fork server has imported is no garbage: each collection would go through it, and copy its pages.
    gc.freeze()
    if folder:
        os.chdir(folder)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    # Those of the fork server may know the file that was there before as one in which they can seek.
    sys.stdout, sys.stderr = (open(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))  # noqa: SIM115
    if arguments[0] == "run":
        from tunemill_trainer.commands import run

        run.subprocess = SimpleNamespace(Popen=_ForkedStage)
    _main(arguments, environment)


def _main(arguments: list[str], environment: dict[str, str]) -> None:
    """Do what `python -m tunemill_trainer ARGUMENTS` does."""
    from tunemill_trainer.stages import runner

    os.environ.clear()
    os.environ.update(environment)
    configure = runner._configure_libraries

    def configure_and_read(*given: Any) -> None:
        configure(*given)
        _read_the_environment()

    runner._configure_libraries = configure_and_read
    sys.argv = ["tunemill-trainer", *arguments]
    runpy.run_module("tunemill_trainer", run_name="__main__", alter_sys=True)


class _ForkedStage:
    """The part of `subprocess.Popen` that the command `run` uses, for a forked stage."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: TextIO | None) -> None:
        python, flag, module, *arguments = command
        assert (python, flag, module) == (sys.executable, "-m", "tunemill_trainer")
        assert stdout is None, "the tests run it without --json"
        self._process = ForkProcess(target=_main, args=(arguments, dict(env)))
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join()

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Return its exit code, negative for a signal."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _read_the_environment() -> None:
    """Read the settings of libraries again, in their modules and wherever else these names were copied to."""
    for name in _READ_THE_ENVIRONMENT:
        settings = importlib.import_module(name)
        before = dict(vars(settings))
        importlib.reload(settings)
        changed = {key: new for key, new in vars(settings).items() if key.isupper() and new != before.get(key)}
        for module in list(sys.modules.values()):
            for key in changed.keys() & vars(module).keys():
                if module.__name__.startswith(("datasets", "huggingface_hub", "transformers")):
                    setattr(module, key, changed[key])

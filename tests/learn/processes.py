"""Stages in processes of their own, forked from one that holds PyTorch: to import it takes longer than most of them.

What reads the environment as it is imported, the Hugging Face libraries above all, each stage imports itself.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        *(
            "torch",
            "torch._dynamo",
            "torch._inductor.compile_fx",
            "torch.distributed.tensor",
            "torch.utils.tensorboard",
        ),
        *("bitsandbytes", "pandas", "pyarrow.parquet", "matplotlib.figure"),
    ]
)


class StageProcess:
    """A process that works like `python -m tunemill_trainer ARGUMENTS` with an environment of its own."""

    def __init__(self, process: ForkServerProcess, log: Connection) -> None:
        self._process = process
        self._log = log

    def lines(self) -> Iterator[str]:
        """Yield what it prints, line by line, until its end."""
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
        assert self._process.exitcode is not None, f"it has closed its log and goes on after {seconds} s"
        return self._process.exitcode


@contextlib.contextmanager
def started(arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[StageProcess]:
    """Start it; where it has not ended with the block, it is killed."""
    log, said = _FORKING.Pipe(duplex=False)
    process = _FORKING.Process(target=_work, args=(list(arguments), dict(environment), said))
    process.start()
    said.close()
    try:
        yield StageProcess(process, log)
    finally:
        process.kill()
        process.join()
        log.close()


def _work(arguments: list[str], environment: dict[str, str], said: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for stream in (1, 2):
        os.dup2(said.fileno(), stream)
    said.close()
    # Those of the fork server may know the file that was there before as one in which they can seek.
    sys.stdout, sys.stderr = (open(stream, "w", encoding="utf-8", closefd=False) for stream in (1, 2))  # noqa: SIM115
    sys.argv = ["tunemill-trainer", *arguments]
    runpy.run_module("tunemill_trainer", run_name="__main__", alter_sys=True)

"""Console output: one line per step with its time, and errors as messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WIDTH = 46
_LOG_LINES = 12


class ClusterError(Exception):
    """An error with a message that contains what was expected, what was found and what to do."""

    @classmethod
    def with_log(cls, message: str, log: Path) -> ClusterError:
        """The message, followed by the last lines of the relevant log."""
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else ["(the log is empty)"]
        return cls("\n".join([message, f"The last lines of {log}:", *(f"    {line[:400]}" for line in lines)]))


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title and the duration after the block has ended. On a terminal the title is shown from the start."""
    if sys.stdout.isatty():
        print(f"… {title}", end="\r", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"✗ {title:<{_WIDTH}} {time.monotonic() - started:6.1f} s", flush=True)
        raise
    print(f"✓ {title:<{_WIDTH}} {time.monotonic() - started:6.1f} s", flush=True)


def say(line: str) -> None:
    """Print one line without buffering."""
    print(line, flush=True)

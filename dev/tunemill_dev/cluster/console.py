"""What a person sees: one line per step with its time, and failures as sentences."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WIDTH = 46
_LOG_LINES = 12


class ClusterError(Exception):
    """Something that a person can act on; its message says what was expected, what was found and what to do."""

    @classmethod
    def with_log(cls, message: str, log: Path) -> ClusterError:
        """The message, followed by the last lines of the log that explains it."""
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else ["(the log is empty)"]
        return cls("\n".join([message, f"The last lines of {log}:", *(f"    {line[:400]}" for line in lines)]))


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title and how long the body took, once it is done; on a terminal the title shows from the start."""
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
    """Print one line, at once."""
    print(line, flush=True)

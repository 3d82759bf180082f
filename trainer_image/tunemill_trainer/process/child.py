"""Asks a module in a child process: for work that imports torch, or that may crash on unusual input."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


class ChildError(Exception):
    """The child process returned no answer. The message has the cause."""


def ask(module: str, request: Mapping[str, Any], seconds: int) -> dict[str, Any]:
    """Run a module in a child process, and return its answer.

    Args:
        module: reads the request as JSON from standard input, and prints the answer as the last line.
        request: the request.
        seconds: the maximum time.

    Raises:
        ChildError: the child was too slow, or ended without an answer.
    """
    try:
        made = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            text=True,
            timeout=seconds,
            check=True,
        )
        answer: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"it took longer than {seconds} seconds") from error
    except (subprocess.CalledProcessError, ValueError, IndexError) as error:
        raise ChildError(f"the process failed: {error}") from error
    return answer

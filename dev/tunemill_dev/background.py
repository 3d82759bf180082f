"""Runs functions that need torch in a separate process, so that this process starts fast and keeps its environment."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_own_process(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> "Future[Result]":
    """Call a function in a new process, and return a future for its result."""
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    promise = pool.submit(function, *arguments, **named)
    pool.shutdown(wait=False)
    return promise

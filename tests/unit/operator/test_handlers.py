"""What the operator logs about errors of the event loop."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from tunemill_operator.handlers import log_loop_error


async def a_watch() -> AsyncIterator[int]:
    """An async generator that raises when it is closed."""
    try:
        yield 1
    finally:
        raise RuntimeError("generator didn't stop after athrow()")


def test_generators_closed_by_the_loop_are_not_logged_as_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Other errors are logged."""
    caplog.set_level(logging.DEBUG)
    left_open = []

    async def stop() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_error)
        watch = a_watch()
        left_open.append(watch)
        assert await anext(watch) == 1
        loop.call_exception_handler({"message": "a task was lost"})

    asyncio.run(stop())
    assert [
        (record.levelname, record.message.partition(" <")[0]) for record in caplog.records if record.name != "asyncio"
    ] == [("DEBUG", "an error occurred during closing of asynchronous generator")]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["a task was lost"]

"""An event loop whose time jumps to the next timer, so that no test waits."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from property.jumping import JumpingLoop


@pytest.fixture
def jump() -> Iterator[Callable[..., object]]:
    """Return a function that runs a coroutine in an event loop of its own."""
    loop = JumpingLoop()
    yield loop.run_until_complete
    asyncio.set_event_loop(None)
    loop.close()

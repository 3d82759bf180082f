"""The work queue against a model, in any order of calls. Time is simulated."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from property.jumping import JumpingLoop
from tunemill_operator.runtime.queue import LONGEST_BACK_OFF, MOMENT, URGENT_IN_A_ROW, WorkQueue

KEYS = st.sampled_from([("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")])
"""Those of namespace a are urgent."""


class Silent:
    """A metric that ignores everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Queue(RuleBasedStateMachine):
    """Workers, and callers that add keys."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = JumpingLoop()
        self.queue: WorkQueue = self.loop.run_until_complete(_a_queue())
        self.waiting: set[tuple[str, str]] = set()
        self.working: set[tuple[str, str]] = set()
        self.due: dict[tuple[str, str], float] = {}
        """The latest time at which a key that is to come later must have come."""

    @rule(key=KEYS)
    def add(self, key: tuple[str, str]) -> None:
        """Any number of times."""
        self.queue.add(key)
        self.waiting.add(key)

    @rule(key=KEYS, seconds=st.integers(1, 100))
    def add_after(self, key: tuple[str, str], seconds: int) -> None:
        """The earliest time counts."""
        self.queue.add_after(key, seconds)
        self.due[key] = min(self.due.get(key, 1e9), self.loop.time() + seconds)

    @precondition(lambda self: self.waiting - self.working)
    @rule()
    def take(self) -> None:
        """A waiting key that no worker processes; no worker waits long for it."""
        asked = self.loop.time()
        key = self.loop.run_until_complete(self.queue.get())
        assert self.loop.time() - asked <= MOMENT + 1e-6
        self._came()
        if key in self.due:
            self.waiting.add(key)
        assert key in self.waiting
        assert key not in self.working
        self.waiting.discard(key)
        self.working.add(key)
        self.due.pop(key, None)

    @precondition(lambda self: self.working)
    @rule(retry=st.booleans())
    def finish(self, retry: bool) -> None:
        """Successfully, or to be retried."""
        key = min(self.working)
        if retry:
            self.queue.retry(key)
            latest = self.loop.time() + LONGEST_BACK_OFF * 1.2
            self.due[key] = min(self.due.get(key, 1e9), latest)
        else:
            self.queue.forget(key)
        self.queue.done(key)
        self.working.discard(key)

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        """Keys become due."""
        self.loop.run_until_complete(_sleep(seconds))
        self._came()

    def _came(self) -> None:
        """Record the keys that are due."""
        for key, latest in list(self.due.items()):
            if latest <= self.loop.time() or key in self.queue._waiting:
                del self.due[key]
                self.waiting.add(key)

    @invariant()
    def exactly_the_added_keys_wait(self) -> None:
        """No key is lost or duplicated."""
        assert len(self.queue) == len(self.waiting)

    def teardown(self) -> None:
        """Every added key is processed in the end."""
        for key in list(self.working):
            self.queue.done(key)
        self.loop.run_until_complete(_sleep(200))
        left = self.waiting | set(self.due)
        for _ in range(len(left)):
            key = self.loop.run_until_complete(self.queue.get())
            self.queue.done(key)
            left.discard(key)
        assert not left
        self.queue.close()
        self.loop.close()


async def _a_queue() -> WorkQueue:
    return WorkQueue(Silent(), lambda key: key[0] == "a")


async def _sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


TestQueue = Queue.TestCase


@given(st.lists(st.booleans(), max_size=60))
def test_urgent_keys_come_first_without_starving_others(urgency: list[bool]) -> None:
    """In the order in which they were added; after so many in a row one of the others."""

    async def story() -> list[tuple[str, str]]:
        queue = await _a_queue()
        for number, urgent in enumerate(urgency):
            queue.add(("a" if urgent else "b", str(number)))
        taken = []
        for _ in urgency:
            taken.append(await queue.get())
            queue.done(taken[-1])
        return taken

    taken = asyncio.run(story())
    for namespace in "ab":
        numbers = [int(number) for kind, number in taken if kind == namespace]
        assert numbers == sorted(numbers)
    others = [at for at, (kind, _) in enumerate(taken) if kind == "b"]
    urgents = sum(urgency)
    assert others == [
        min(turn * (URGENT_IN_A_ROW + 1) + URGENT_IN_A_ROW, urgents + turn) for turn in range(len(others))
    ]


def test_other_keys_wait_briefly_while_an_urgent_key_is_processed() -> None:
    """They continue when it is done, or takes long; a cancelled worker takes no key."""
    loop = JumpingLoop()

    async def story() -> None:
        queue = await _a_queue()
        cancelled = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        cancelled.cancel()
        for key in (("a", "1"), ("b", "1"), ("b", "2")):
            queue.add(key)
        assert await queue.get() == ("a", "1")
        assert not queue.urgent_pending(("a", "1"))
        assert queue.urgent_pending(("b", "1"))
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0.8 * MOMENT)
        assert not waiting.done()
        await asyncio.sleep(0.3 * MOMENT)
        assert await waiting == ("b", "1")
        queue.add(("a", "2"))
        assert await queue.get() == ("a", "2")
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        queue.done(("a", "2"))
        assert await waiting == ("b", "2")

    loop.run_until_complete(story())
    loop.close()

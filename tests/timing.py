"""A pytest plugin that notes in build/test-times.jsonl how long each test takes; `make test` shows the slowest.

Processor time counts the worker's process and the children that it has waited for, and does not depend on what else
the machine does; the time by the clock does, and counts what a test waits for.
"""

import json
import resource
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TIMES = Path(__file__).parents[1] / "build" / "test-times.jsonl"
PROCESSOR = pytest.StashKey[float]()
Phase = Iterator[None]


def pytest_configure(config: pytest.Config) -> None:
    """Note times in the process that sees the reports of all workers."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Times(config), "times")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Phase:
    """Measure the fixtures."""
    yield from _measured(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Phase:
    """Measure the test."""
    yield from _measured(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Phase:
    """Measure what ends the fixtures."""
    yield from _measured(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Send what was measured along with the report."""
    report = yield
    report.processor = item.stash.get(PROCESSOR, 0.0)
    return report


class Times:
    """The times of one run of pytest."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = time.monotonic()
        self._tests: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase to its test."""
        times = self._tests[report.nodeid]
        times[0] += report.duration
        times[1] += getattr(report, "processor", 0.0)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """Append this run, when the workers have ended and their processor time is known."""
        if self._tests:
            run = {
                "paths": self._config.args,
                "seconds": round(time.monotonic() - self._started, 1),
                "processor_seconds": round(_processor_seconds(), 1),
                "tests": {name: [round(value, 2) for value in times] for name, times in self._tests.items()},
            }
            TIMES.parent.mkdir(parents=True, exist_ok=True)
            with TIMES.open("a") as lines:
                lines.write(json.dumps(run) + "\n")


def _measured(item: pytest.Item) -> Phase:
    before = _processor_seconds()
    try:
        return (yield)
    finally:
        item.stash[PROCESSOR] = _processor_seconds() - before


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)

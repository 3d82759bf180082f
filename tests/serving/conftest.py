"""One process that has imported vLLM, and the rows of the measured table."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tunemill_dev.serving import report
from tunemill_dev.serving.cells import Cells
from tunemill_dev.serving.engines import Engines, engines

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def vllm() -> Iterator[Engines]:
    """VLLM, which takes half a minute to import."""
    with engines(ROOT) as running:
        yield running


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, Cells]]:
    """The rows so far. build/serving/report.json is written at the end."""
    found: dict[str, Cells] = {}
    yield found
    report.write(ROOT, found)

"""The trained runs that several modules look at from different sides."""

from collections.abc import Iterator

import pytest
import torch
from learn.runs import TrainedRun, a_trained_run


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads of so small a model wait for each other, and the tests run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def extended_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    """A Gemma 2 whose vocabulary was extended by the tags."""
    with a_trained_run(tmp_path_factory.mktemp("extended"), "gemma2") as run:
        yield run

"""The trained runs that several modules look at from different sides."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learn.runs import SEED, Recipe, TrainedRun, a_shared_run
from learn.training import World, a_world
from tunemill_dev.tiny.cached import cached_base


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which seed the trainings have that are judged by what they learn."""
    parser.addoption("--training-seed", type=int, default=SEED, help="of trainings that learn (default: %(default)s)")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads of so small a model wait for each other, and the tests run side by side."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of trainings that are judged by what they learn."""
    found: int = request.config.getoption("--training-seed", SEED)
    return found


@pytest.fixture(scope="session")
def base() -> Path:
    """A tiny base model with random weights, for what does not need to be learnt."""
    return cached_base("gemma2", steps=0)


@pytest.fixture
def world(tmp_path: Path, base: Path) -> Iterator[World]:
    """The services that a run needs, with this base model on the Hub."""
    with a_world(tmp_path, base) as running:
        yield running


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all worker processes of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


@pytest.fixture(scope="session")
def extended_run(tmp_path_factory: pytest.TempPathFactory, shared: Path, seed: int) -> Iterator[TrainedRun]:
    """A Gemma 2 whose vocabulary was extended by the tags, trained and evaluated once for all modules."""
    recipe = Recipe("gemma2", mode="Extend").with_seed(seed)
    with a_shared_run(tmp_path_factory.mktemp("extended"), shared, recipe) as run:
        yield run

"""Fixtures for trained runs that several modules use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learn.runs import SEED, Recipe, TrainedRun, a_shared_run
from learn.training import World, a_world
from tunemill_dev.tiny.cached import cached_base


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the seed of trainings whose learned metrics are checked."""
    parser.addoption("--training-seed", type=int, default=SEED, help="of trainings that learn (default: %(default)s)")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """With two threads a model this small is slower, and tests run in parallel."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of trainings whose learned metrics are checked."""
    found: int = request.config.getoption("--training-seed", SEED)
    return found


@pytest.fixture(scope="session")
def base() -> Path:
    """A tiny base model with random weights, for tests that check no learned metric."""
    return cached_base("gemma2", steps=0)


@pytest.fixture
def world(tmp_path: Path, base: Path) -> Iterator[World]:
    """The services of a run, with this base model on the Hub."""
    with a_world(tmp_path, base) as running:
        yield running


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shared by all worker processes of this test run."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


@pytest.fixture(scope="session")
def extended_run(tmp_path_factory: pytest.TempPathFactory, shared: Path, seed: int) -> Iterator[TrainedRun]:
    """A Gemma 2 with a vocabulary extended by the tags, trained and evaluated once for all modules."""
    recipe = Recipe("gemma2", mode="Extend").with_seed(seed)
    with a_shared_run(tmp_path_factory.mktemp("extended"), shared, recipe) as run:
        yield run

"""A cluster with Tunemill, and a separate namespace for each test; a failed test leaves diagnostics.

Two workers share the cluster. Tests that reinstall the chart, or cannot run while another one does, belong to one group
(`xdist_group("chart")`), so that one worker runs them in turn.
"""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from e2e.world import World
from filelock import FileLock
from tunemill_dev.background import in_own_process
from tunemill_dev.places import OPERATOR, TRAINER, attached, local
from tunemill_dev.testbed import REPOSITORY_ROOT, Testbed, save_diagnostics
from tunemill_dev.tiny import make_base

DIAGNOSTICS = REPOSITORY_ROOT / "build" / "e2e"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for the cluster: a local one, created if it does not run and kept, or an existing one."""
    parser.addoption("--cluster", default="tunemill-e2e", help="the local cluster (default: %(default)s)")
    parser.addoption("--context", default="", help="use the cluster of this kubectl context instead")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Pass the result of a test to the fixtures that end after it."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def testbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Iterator[Testbed]:
    """A cluster with the images and the chart, from the first worker that needs it.

    The others use its images. Images that they build themselves may have another hash, and would replace the Hub while
    tests use it.
    """
    logging.getLogger("tunemill_dev.kubectl").setLevel(logging.INFO)
    context, cluster = request.config.getoption("--context"), request.config.getoption("--cluster")
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent  # of all workers; without workers, it is of all runs and has old images
    with ExitStack() as stack:
        with FileLock(shared / "e2e.lock"):
            images = shared / "e2e-images.json"
            built = json.loads(images.read_text()) if images.exists() else None
            testbed = stack.enter_context(attached(context, built) if context else local(cluster, built))
            if built is None:
                shutil.rmtree(DIAGNOSTICS, ignore_errors=True)
                testbed.install()
                images.write_text(json.dumps({OPERATOR: testbed.operator_image, TRAINER: testbed.trainer_image}))
        yield testbed


@pytest.fixture(scope="session")
def base(testbed: Testbed, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> str:
    """The Hub repository of a small base model with random weights."""
    repository = f"{testbed.hub.owner}/e2e-base-{worker_id}"
    # Transformers, imported here, would bring in the Hub's client before it is configured not to use Xet.
    folder = in_own_process(make_base, tmp_path_factory.mktemp("base"), kind="qwen3", steps=0).result()
    testbed.hub.put_model(repository, folder)
    return repository


@pytest.fixture
def world(testbed: Testbed, base: str, request: pytest.FixtureRequest) -> Iterator[World]:
    """A namespace with secrets, a bucket and a unique repository name."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_"))[:30].strip("-")
    world = World(testbed, base, name=f"{words}-{secrets.token_hex(2)}")
    testbed.make_namespace(world.name)
    testbed.store.make_empty(world.name)
    try:
        yield world
        if request.node.stash.get(FAILED, True):
            save_diagnostics(testbed.kubectl, world.name, DIAGNOSTICS / request.node.name)
    finally:
        testbed.kubectl("delete", "namespace", world.name, "--wait=false")
        testbed.hub.delete(world.repository)

"""A control plane with the fake kubelet, and the number of objects."""

from collections.abc import Iterator

import pytest
from kube.plane import Plane, a_plane


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for `make test-chaos`."""
    parser.addoption("--objects", type=int, default=30, help="how many FunctionCallFineTunes suffer")
    parser.addoption("--minutes", type=float, default=1.0, help="how long objects come and go")
    parser.addoption("--kills", type=int, default=2, help="how often the leading operator is killed")


@pytest.fixture
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with the CRD and the fake kubelet."""
    with a_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane

"""One control plane for all tests of a folder, and a namespace for each. A conftest imports what it needs."""

import re
from collections.abc import Iterator

import pytest
from kube.operators import Operator, an_operator
from kube.plane import Namespace, Plane, a_plane


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with the CRD and the fake kubelet."""
    with a_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
def namespace(plane: Plane, request: pytest.FixtureRequest) -> Namespace:
    """A namespace named after the test; it refuses pods that are not restricted."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")
    return plane.namespace(words[:50].strip("-"), {"pod-security.kubernetes.io/enforce": "restricted"})


@pytest.fixture(scope="module")
def operator(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator that serves all namespaces."""
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    with an_operator(plane.kubeconfig, log, "--no-leader-election") as operator:
        yield operator

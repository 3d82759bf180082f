"""The fixtures of this folder."""

import pytest
from kube.fixtures import namespace, operator, plane

__all__ = ["namespace", "operator", "plane"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for `make test-long`."""
    parser.addoption("--mutations", type=int, default=100, help="how many mutated documents the running operator gets")
    parser.addoption("--first-seed", type=int, default=0, help="the seed of the first of them")
    parser.addoption(
        "--serve-within", type=float, default=180, help="seconds in which a valid object is served meanwhile"
    )

"""The fixtures of tests/kube, and a cluster as a platform team finds it."""

from collections.abc import Iterator

import pytest
from chart.releases import TEAMS, Cluster
from chart.rendering import NAMESPACE
from kube.fixtures import namespace, operator, plane
from tunemill_dev.cluster import control_plane

__all__ = ["bare_cluster", "namespace", "operator", "plane"]


@pytest.fixture(scope="session")
def bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane without anything of ours, but with the namespaces of a platform team and of its tenants.

    Pods that are not `restricted` are refused in all of them.
    """
    with control_plane(tmp_path_factory.mktemp("bare")) as running:
        cluster = Cluster(running.kubeconfig, running.kubectl)
        for name in (NAMESPACE, *TEAMS):
            assert cluster.kubectl("create", "namespace", name).returncode == 0
            cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        yield cluster

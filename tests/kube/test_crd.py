"""An operator whose CRD is missing or removed, on a separate control plane."""

from pathlib import Path

from kube.operators import start
from kube.plane import CRD_PATH, Plane
from tunemill_api.constants import GROUP, PLURAL
from tunemill_dev.cluster import control_plane


def test_an_operator_waits_for_its_crd_and_exits_when_it_is_removed(tmp_path: Path) -> None:
    """One sentence in the log and on /readyz instead of a crash loop, and no traceback at exit."""
    with control_plane(tmp_path / "plane") as running:
        plane = Plane(running.kubeconfig, running.kubectl)
        operator = start(plane.kubeconfig, tmp_path / "operator.log", "--no-leader-election")
        operator.wait_until_it_says("the CRD of FunctionCallFineTune is not installed")
        assert operator.probe("/readyz") == (500, "the caches are not filled yet")
        assert operator.probe("/healthz") == (200, "ok")
        plane.install_crd()
        operator.wait_until_it_says("serving all namespaces")
        assert operator.probe("/readyz") == (200, "ok")
        plane.api.delete(f"{CRD_PATH}/{PLURAL}.{GROUP}")
        assert operator.process.wait(180) == 1
        assert operator.logged("restarting the process")
        assert not operator.logged("Traceback"), operator.log.read_text()

"""A schedule against a real API server and a real clock: cron's shortest step is a minute."""

import pytest
from kube.kubelet import eventually
from kube.plane import Namespace, Plane
from tunemill_api.stage_report import Stage

pytestmark = pytest.mark.usefixtures("operator")


def test_every_minute_the_data_is_looked_at_and_nothing_else_happens(plane: Plane, namespace: Namespace) -> None:
    """Prepare runs again at its time; the data has not changed, so that nothing is trained, and one run is kept."""
    namespace.apply("clockwork", retrain={"schedule": "* * * * *"})
    first = namespace.wait_for("clockwork", "Succeeded")
    eventually(lambda: plane.kubelet.starts_of("clockwork", Stage.PREPARE) >= 2, "the data is looked at")
    namespace.edit("clockwork", retrain=None)
    status = namespace.wait_for("clockwork", "Succeeded")
    assert plane.kubelet.starts_of("clockwork", Stage.TRAIN) == 1
    assert plane.kubelet.starts_of("clockwork", Stage.PUBLISH) == 1
    assert status["retrain"]["lastTime"].endswith(":00Z")
    assert status["published"] == first["published"]
    assert len(status["history"]) == 1
    eventually(lambda: "Retraining" in namespace.events("clockwork"), "an event tells of it")

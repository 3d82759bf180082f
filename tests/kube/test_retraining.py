"""A schedule with a real API server and a real clock; the shortest interval of cron is a minute."""

import pytest
from kube.kubelet import eventually
from kube.plane import Namespace, Plane
from tunemill_api.stage_report import Stage

pytestmark = pytest.mark.usefixtures("operator")


def test_the_data_is_checked_every_minute_and_unchanged_data_reruns_only_prepare(
    plane: Plane, namespace: Namespace
) -> None:
    """Nothing is trained, and the history keeps one run."""
    namespace.apply("clockwork", retrain={"schedule": "* * * * *"})
    first = namespace.wait_for("clockwork", "Succeeded")
    eventually(lambda: plane.kubelet.starts_of("clockwork", Stage.PREPARE) >= 2, "the data is checked")
    namespace.edit("clockwork", retrain=None)
    status = namespace.wait_for("clockwork", "Succeeded")
    assert plane.kubelet.starts_of("clockwork", Stage.TRAIN) == 1
    assert plane.kubelet.starts_of("clockwork", Stage.PUBLISH) == 1
    assert status["retrain"]["lastTime"].endswith(":00Z")
    assert status["published"] == first["published"]
    assert len(status["history"]) == 1
    eventually(lambda: "Retraining" in namespace.events("clockwork"), "an event reports it")

"""Inputs of mutations: objects, Jobs and pods at each point of a run, a profile and a progress report."""

import json
from functools import cache

from property.simulator import World
from property.worlds import a_finished_world, a_world_at
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_dev.played import a_report

PROFILE = {
    "metadata": {
        "name": "gold",
        "uid": "gold",
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": "2026-11-21T12:00:00Z",
    },
    "spec": {
        "default": True,
        "namespaces": ["team-a"],
        "defaults": {"compute": {"gpus": 1}, "retry": {"limit": 1}, "maxRuntime": "8h", "queue": {"name": "q"}},
        "limits": {"maxGpus": 4, "maxGpuHours": "24", "maxResources": {"cpu": "8"}, "baseModels": ["google/*"]},
    },
    "status": {
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Valid", "lastTransitionTime": "2026-11-21T12:00:00Z"}
        ]
    },
}
REPORT = {
    "stage": "train",
    "trainerStatus": {
        "progressPercentage": 4,
        "estimatedRemainingSeconds": 60,
        "metrics": [{"name": "loss", "value": "0.2"}],
        "lastUpdatedTime": "2026-11-21T12:00:05Z",
    },
    "report": json.loads(a_report(Stage.TRAIN)),
}


@cache
def worlds() -> tuple[World, ...]:
    """Return a world at each point of a run."""
    parts = {"retrain": {"schedule": "0 2 * * 0", "timeZone": "Europe/Berlin"}, "maxGpuHours": "24", "maxRuntime": "8h"}
    return (
        World(**parts),
        *(a_world_at(stage, **parts) for stage in Stage),
        a_finished_world(**parts),
        a_failed_world(),
    )


def a_failed_world() -> World:
    """Return a world whose run has failed."""
    world = a_world_at(Stage.TRAIN, retry={"limit": 0})
    for pod in world.live_pods():
        world.fail(pod, Reason.INTERNAL_ERROR)
    for _ in range(5):
        world.settle()
        world.seconds += 10
    return world

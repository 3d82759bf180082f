"""Worlds in an advanced state, and their parts for assertions."""

from typing import Any

from property.simulator import World
from tunemill_api.stage_report import Stage
from tunemill_api.status import Condition, Phase, StageState, StageStatus


def a_world_at(stage: Stage, **parts: Any) -> World:
    """Return a world in which the container of this stage runs."""
    world = World(**parts)
    for _ in range(12):
        world.settle()
        for pod in world.live_pods():
            world.start(pod)
            if entry(world, stage).state is StageState.RUNNING:
                return world
            world.seconds += 10
            world.reconcile()
            if entry(world, stage).state is StageState.RUNNING:
                return world
            world.succeed(pod)
    raise AssertionError(f"{stage} never ran")


def a_finished_world(**parts: Any) -> World:
    """Return a world with a published run."""
    world = World(**parts)
    for _ in range(4):
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED
    return world


def run_to_the_end(world: World) -> None:
    """Let all remaining stages succeed."""
    for _ in range(5):
        world.settle()
        world.seconds += 10
        world.run_pod()
    world.settle()
    assert world.status.phase is Phase.SUCCEEDED, world.status


def entry(world: World, stage: Stage) -> StageStatus:
    """Return the status of a stage."""
    found: StageStatus = next(
        (item for item in world.status.stages if item.name == stage), StageStatus(name=stage, state=StageState.PENDING)
    )
    return found


def condition(world: World, kind: str) -> Condition:
    """Return a condition."""
    found: Condition = next(item for item in world.status.conditions if item.type == kind)
    return found


def labels(world: World) -> list[str]:
    """Return the stage labels of the Jobs in the order in which they were created."""
    return [name.split("-")[1] for name in world.created]

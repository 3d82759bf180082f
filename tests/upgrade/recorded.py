"""Loads a recorded object into a world, as after an upgrade to this version of the operator."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from property.builders import NOON
from property.simulator import World
from tunemill_api.constants import ANNOTATION_RUN_SPEC
from tunemill_api.stage_report import Stage
from tunemill_operator.engine.observe import WarningEvent
from tunemill_operator.engine.profiles import profile_of
from upgrade.stored import stored_finetune, stored_profile

FOLDER = Path(__file__).parent
RECORDED = sorted(FOLDER.glob("*/*.json"))
"""Every object of every recorded version."""


def name_of(path: Path) -> str:
    """Return the name of a recorded object with its version, for test ids."""
    return f"{path.parent.name}/{path.stem}"


def a_recorded_world(path: Path) -> World:
    """Return the world of a recorded object, with what the present CRDs make of it."""
    found: dict[str, Any] = json.loads(path.read_text())
    world = World()
    world.finetune_body = stored_finetune(found["finetune"])
    world.jobs = {job["metadata"]["name"]: job for job in found["jobs"]}
    world.pods = {pod["metadata"]["name"]: pod for pod in found["pods"]}
    bodies = [found["finetune"], *found["jobs"], *found["pods"]]
    for body in found["pods"]:
        _readable(body["metadata"])
        body.setdefault("stages", {str(stage): [stage] for stage in Stage})  # one container each, in that version
        body.setdefault("reports", [])
    for body in found["jobs"]:
        _readable(body["spec"]["template"]["metadata"])
    world.version = max(int(body["metadata"]["resourceVersion"]) for body in bodies)
    world.count = 1000  # above every number in the recorded uids
    world.profiles = tuple(profile_of(stored_profile(body)) for body in found["profiles"])
    world.warning_events = tuple(
        WarningEvent(**{**item, "last_seen": datetime.fromisoformat(item["last_seen"])}) for item in found["complaints"]
    )
    world.seconds = int((datetime.fromisoformat(found["time"]) - NOON).total_seconds()) + 60
    world.outputs = {Stage(stage) for stage in found["workspace"]["stages"]}
    world.tuned, world.serving = found["workspace"]["tuned"], found["workspace"]["serving"]
    world.restart_operator()
    return world


def _readable(metadata: Any) -> None:
    """Let the simulator read a RunSpec: the trainer that it plays is of this version, a recorded pod's is not."""
    run = json.loads(metadata["annotations"][ANNOTATION_RUN_SPEC])
    run["spec"] = stored_finetune({"spec": run["spec"]})["spec"]
    metadata["annotations"][ANNOTATION_RUN_SPEC] = json.dumps(run)


def prepared_key(path: Path) -> str:
    """Return the key that prepare of the recorded object reports."""
    key: str = json.loads(path.read_text())["workspace"]["prepare"]
    return key

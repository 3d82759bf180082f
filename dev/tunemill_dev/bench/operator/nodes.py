"""Simulated nodes: kwok starts and ends the stage pods as if they had run. The real scheduler places them."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from tunemill_api.constants import LABEL_STAGE
from tunemill_api.stage_report import Stage

from tunemill_dev.bench.operator.api import Api, Json
from tunemill_dev.bench.operator.contenders import started
from tunemill_dev.cluster import binaries
from tunemill_dev.played import a_report

NODES = 10
STAGE_MILLISECONDS = 200
"""The duration of each stage."""
_SAYS = "{{ Now }}"


@contextlib.asynccontextmanager
async def simulated_nodes(api: Api, kubeconfig: Path, folder: Path) -> AsyncIterator[None]:
    """Provide nodes with GPUs, a scheduler, and kubelets that let every stage succeed, inside the context."""
    programs = binaries.ensure([binaries.KUBERNETES, binaries.KWOK])
    stages = folder / "stages.yaml"
    stages.write_text("\n---\n".join(json.dumps(stage) for stage in _stages()))
    scheduler = [str(programs[binaries.KUBERNETES.name] / "kube-scheduler"), "--leader-elect=false", "--secure-port=0"]
    # Without leases, nodes count as unreachable after 50 seconds.
    options = ["--manage-all-nodes", "--node-lease-duration-seconds=120", f"--config={stages}"]
    kwok = [str(programs[binaries.KWOK.name] / "kwok"), *options]
    running = [
        started([*command, f"--kubeconfig={kubeconfig}"], folder / f"{Path(command[0]).name}.log", {})
        for command in (scheduler, kwok)
    ]
    try:
        for number in range(NODES):
            await api.request("POST", "/api/v1/nodes", _node(f"node-{number}"))
        yield
    finally:
        for each in running:
            await each.stop()


def _node(name: str) -> Json:
    room = {"cpu": "10000", "memory": "100Ti", "pods": "5000", "nvidia.com/gpu": "5000", "ephemeral-storage": "100Ti"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "status": {"capacity": room, "allocatable": room},
    }


def _stages() -> list[Json]:
    """Return the kwok stages for pods, in order, and for nodes."""
    pods = {
        "prepare": [Stage.PREPARE],
        "train": [Stage.TRAIN, Stage.EVALUATE],
        "publish": [Stage.PUBLISH],
    }
    steps = [_pod_stage(label, work, ended=ended) for label, work in pods.items() for ended in (False, True)]
    return [_node_stage(), *steps]


def _node_stage() -> Json:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _SAYS}
    status = {"phase": "Running", "conditions": [ready]}
    return _stage("node", "Node", {}, {"status.phase": None}, status)


def _pod_stage(label: str, work: list[Stage], *, ended: bool) -> Json:
    """Return the kwok stage after which the pod's container runs or has run all its stages."""
    if ended:
        reports = "\n".join(a_report(stage) for stage in work)
        times = {"startedAt": _SAYS, "finishedAt": _SAYS}
        state: Json = {"terminated": {"exitCode": 0, "reason": "Completed", "message": reports, **times}}
    else:
        state = {"running": {"startedAt": _SAYS}}
    image = {"image": "registry.example.com/trainer:1", "imageID": ""}
    container = {"name": label, "state": state, "ready": not ended, "restartCount": 0, **image}
    status = {
        "phase": "Succeeded" if ended else "Running",
        "startTime": _SAYS,
        "containerStatuses": [container],
    }
    conditions = {
        "metadata.deletionTimestamp": None,
        "spec.nodeName": [],
        "status.phase": ["Running"] if ended else ["Pending"],
    }
    name = f"{label}-{'ended' if ended else 'started'}"
    milliseconds = STAGE_MILLISECONDS * (len(work) if ended else 1)
    return _stage(name, "Pod", {LABEL_STAGE: label}, conditions, status, milliseconds)


def _stage(
    name: str,
    kind: str,
    labels: Json,
    conditions: dict[str, list[str] | None],
    status: Json,
    milliseconds: int = STAGE_MILLISECONDS,
) -> Json:
    """Return a kwok stage for objects with these labels and field values. [] is any value, None a missing field."""
    expressions = [
        {"key": f".{key}", "operator": "In" if values else "DoesNotExist" if values is None else "Exists"}
        | ({"values": values} if values else {})
        for key, values in conditions.items()
    ]
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": kind},
            "selector": {"matchLabels": labels, "matchExpressions": expressions},
            "delay": {"durationMilliseconds": milliseconds},
            "next": {"statusTemplate": json.dumps(status)},
        },
    }

"""Objects that are created and deleted for a long time leave nothing in the operator's memory."""

import time
from pathlib import Path

import pytest
from kube.kubelet import eventually
from kube.operators import Operator, an_operator
from kube.plane import Namespace, Plane
from tunemill_api.constants import PLURAL

AT_ONCE = 20
WARM_ROUNDS = 4
"""Rounds until everything that is loaded at first use is loaded, and the allocator has what it needs."""
GROWTH_MB = 8.0
"""What the allocator may still take afterwards. A body that is kept for each object of a round would be a megabyte."""


def test_created_and_deleted_objects_do_not_leak_memory(
    plane: Plane, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In rounds: objects are created, run to their end and are deleted, and the memory does not grow."""
    until = time.monotonic() + 60 * request.config.getoption("--minutes")
    namespace = plane.namespace("soak")
    memory: list[float] = []
    with an_operator(plane.kubeconfig, tmp_path / "operator.log", "--no-leader-election") as operator:
        while time.monotonic() < until or len(memory) < 2 * WARM_ROUNDS:
            _round(namespace, f"round-{len(memory)}")
            memory.append(_resident_mb(operator))
        assert operator.process.poll() is None
        assert not operator.logged("Traceback")
    warm, late = max(memory[:WARM_ROUNDS]), min(memory[-WARM_ROUNDS:])
    print(
        f"{len(memory)} rounds of {AT_ONCE} objects: {memory[0]:.1f} MB, warm {warm:.1f} MB, at the end {late:.1f} MB"
    )
    assert late - warm < GROWTH_MB, f"resident memory in MB, round by round: {memory}"


def _round(namespace: Namespace, prefix: str) -> None:
    names = [f"{prefix}-{number}" for number in range(AT_ONCE)]
    for name in names:
        namespace.apply(name)
    eventually(lambda: all(_phase(namespace, name) == "Succeeded" for name in names), "all have succeeded", seconds=180)
    for name in names:
        namespace.delete(name)
    eventually(lambda: not namespace.plane.api.get(namespace.path("jobs"))["items"], "their Jobs are gone", seconds=120)


def _phase(namespace: Namespace, name: str) -> str:
    found = namespace.plane.api.get(namespace.path(PLURAL, name)).get("status", {})
    phase: str = found.get("phase", "")
    return phase


def _resident_mb(operator: Operator) -> float:
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

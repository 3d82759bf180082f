"""Mutated objects, Jobs, pods, profiles, reports and annotations, as a real API server takes them, stop no operator.

CI sends a few. `make test-long` sends 100,000, and each valid object must be served in 5 s. `--first-seed` continues
where an earlier run ended, or repeats a round that failed.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from chart.rendering import CHART
from kube.fuzz import SENDERS, Sender, remove_all
from kube.kubelet import eventually
from kube.operators import Operator
from kube.plane import Namespace, Plane
from kube.test_progress import an_endpoint, token_of, training_pod
from tunemill_api.scalars import quantity_value

ROUND = 200
"""Most seeds that are sent before everything is removed."""
CHECK_SECONDS = 4
"""Pause between two checks of the operator: a valid object takes as much work as several mutated ones."""


def memory_of(operator: Operator) -> int:
    """Return the peak memory of the operator in bytes."""
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert peak
    return int(peak[1]) * 1024


def seconds_to_serve(namespace: Namespace, name: str) -> float:
    """Return how long a valid object waits for its first status."""
    namespace.apply(name)
    begin = time.monotonic()
    eventually(lambda: namespace.status(name).get("observedGeneration") == 1, f"{name} is served")
    took = time.monotonic() - begin
    namespace.delete(name)
    return took


@contextmanager
def senders(plane: Plane, namespace: Namespace, folder: Path) -> Iterator[tuple[Operator, list[Sender]]]:
    """Run an operator, and a pod that reports its progress; the senders have a separate namespace."""
    attacker = plane.namespace("fuzz")
    plane.kubelet.left_alone.add(attacker.name)
    try:
        with an_endpoint(plane, folder) as endpoint:
            pod = training_pod(plane, namespace, "reporting")

            def post(report: bytes) -> int:
                return endpoint.post(namespace.name, "reporting", token_of(namespace, pod), body=report)

            yield endpoint.operator, [Sender(attacker, number, post) for number in range(SENDERS)]
            assert endpoint.operator.stop() == 0
    finally:
        remove_all(attacker)
        plane.kubelet.behaviours.pop(("reporting", "train"), None)
        namespace.delete("reporting")


def test_the_running_operator_serves_valid_objects_among_mutated_ones(
    plane: Plane, namespace: Namespace, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """The process stays ready, retries no object forever, and its memory stays within the chart's limit."""
    count, within = pytestconfig.getoption("--mutations"), pytestconfig.getoption("--serve-within")
    limit = yaml.safe_load((CHART / "values.yaml").read_text())["resources"]["limits"]["memory"]
    seed, times, begin = pytestconfig.getoption("--first-seed"), list[float](), time.monotonic()
    taken, refused, answers = Counter[str](), Counter[str](), Counter[int]()
    with senders(plane, namespace, tmp_path) as (operator, several), ThreadPoolExecutor(SENDERS) as pool:
        while taken.total() + refused.total() < count:
            seeds = range(seed, seed + min(ROUND, count))
            sending, pending = [pool.submit(sender.send, seeds) for sender in several], True
            try:
                while pending:
                    assert operator.process.poll() is None, f"the operator ended, {seeds}"
                    assert operator.probe("/readyz")[0] == 200, f"the operator is not ready, {seeds}"
                    times.append(seconds_to_serve(namespace, f"valid-{len(times)}"))
                    assert times[-1] <= within, f"served after {times[-1]:.1f} s, {seeds}; before {times}"
                    assert memory_of(operator) < quantity_value(limit), f"too much memory, {seeds}"
                    pending = bool(wait(sending, timeout=CHECK_SECONDS).not_done)
            finally:
                for sender in several:
                    sender.stopped = pending
            for future in sending:
                future.result()
            remove_all(several[0].namespace)
            for sender in several:
                sender.forget()
            seed = seeds.stop
            taken = sum((sender.taken for sender in several), Counter())
            refused = sum((sender.refused for sender in several), Counter())
            answers = sum((sender.answers for sender in several), Counter())
            print(
                f"{taken.total() + refused.total()} documents in {time.monotonic() - begin:.0f} s, next seed {seed}: "
                f"served within {max(times):.1f} s, {memory_of(operator) >> 20} MiB; taken in {dict(taken)}",
                flush=True,
            )
    assert {200, 400} <= {*answers}, "some progress reports have to be taken in, and some refused"
    assert {"object", "jobs", "pods", "profile", "annotations", "report"} <= {*taken}
    assert taken.total() > refused.total() / 2, "much of what is sent has to be taken in, or nothing is tried"

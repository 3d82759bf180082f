"""Mutated objects, Jobs, pods, profiles, reports and annotations, as a real API server takes them, stop no operator.

CI sends a few. `make test-long` sends 100,000, which takes hours, and wants each honest object served within 5 s.
"""

import re
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import yaml
from chart.rendering import CHART
from kube.fuzz import Fuzz
from kube.kubelet import eventually
from kube.operators import Operator
from kube.plane import Namespace, Plane
from kube.test_progress import an_endpoint, token_of, training_pod
from property.hostile_worlds import REPORT
from property.mutations import mutated, text_of
from tunemill_api.scalars import quantity_value


def memory_of(operator: Operator) -> int:
    """Return the most bytes of memory that the operator has had."""
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert peak
    return int(peak[1]) * 1024


def seconds_to_serve(namespace: Namespace, name: str) -> float:
    """Return how long an honest object waits for its first status."""
    namespace.apply(name)
    begin = time.monotonic()
    eventually(lambda: namespace.status(name).get("observedGeneration") == 1, f"{name} is served")
    took = time.monotonic() - begin
    namespace.delete(name)
    return took


def a_report(seed: int) -> str:
    """Return a mutated progress report."""
    random = Random(seed)
    return text_of(random, mutated(random, REPORT, random.choice([0, 1, 1, 2, 5])))


def test_the_running_operator_serves_the_honest_beside_mutated_objects(
    plane: Plane, namespace: Namespace, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """It stays the same process and ready, reads no object for ever, and its memory stays within the chart's limit."""
    count, within = pytestconfig.getoption("--mutations"), pytestconfig.getoption("--serve-within")
    limit = yaml.safe_load((CHART / "values.yaml").read_text())["resources"]["limits"]["memory"]
    attacker = plane.namespace("fuzz")
    plane.kubelet.left_alone.add(attacker.name)
    fuzz, times, answers = Fuzz(attacker), [], Counter[int]()
    try:
        with an_endpoint(plane, tmp_path) as endpoint:
            operator = endpoint.operator
            pod = training_pod(plane, namespace, "reporting")
            for seed in range(count):
                fuzz.send(seed)
                if seed % 10 == 9:
                    body = a_report(seed).encode(errors="surrogatepass")
                    answers[endpoint.post(namespace.name, "reporting", token_of(namespace, pod), body=body)] += 1
                if seed % 50 == 49:
                    assert operator.process.poll() is None, f"the operator ended after seed {seed}"
                    assert operator.probe("/readyz")[0] == 200, f"the operator is not ready after seed {seed}"
                    times.append(seconds_to_serve(namespace, f"honest-{seed}"))
                    assert times[-1] <= within, f"served after {times[-1]:.1f} s, seed {seed}; before {times}"
                    assert memory_of(operator) < quantity_value(limit), f"too much memory after seed {seed}"
                if seed % 1000 == 999:
                    fuzz.remove_all()
                    print(
                        f"{seed + 1}: served within {max(times):.1f} s, {memory_of(operator) >> 20} MiB; {fuzz.taken}"
                    )
            assert operator.stop() == 0
    finally:
        fuzz.remove_all()
        plane.kubelet.behaviours.pop(("reporting", "train"), None)
        namespace.delete("reporting")
    assert {200, 400} <= {*answers}, "some progress reports have to be taken in, and some refused"
    assert {"object", "jobs", "pods", "profile", "annotations"} <= {*fuzz.taken}
    assert fuzz.taken.total() > count, "most of what is sent has to be taken in, or nothing is tried"

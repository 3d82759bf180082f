"""Many faults at once, with a real API server: each stage still runs once, and each status is correct."""

import base64
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
import urllib3
from chaos.proxy import Faults, Proxy
from kube.api import ApiError
from kube.kubelet import eventually, fails
from kube.operators import Operator, start
from kube.plane import Namespace, Plane
from tunemill_api.constants import PLURAL
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage

HAND_OVER_SECONDS = 60
WATCHES = 3
"""Objects, Jobs and pods."""
ENDED = {"Succeeded", "Failed"}


class Replicas:
    """Two operators behind the proxy, of which one leads; a killed one is restarted, as by a Deployment."""

    def __init__(self, kubeconfig: Path, namespace: str, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder
        self._arguments = ["--lease-name=chaos", f"--lease-namespace={namespace}", f"--namespaces={namespace}"]
        self._count = 0
        self.running = [self._start(), self._start()]

    def leader(self) -> Operator:
        """Return the leader."""

        def leading() -> Operator | None:
            self.revive()
            return next((each for each in self.running if each.logged("serving")), None)

        found: Operator = eventually(leading, "an operator leads", HAND_OVER_SECONDS)
        return found

    def kill_the_leader(self) -> None:
        """Kill it without a clean stop, as after a power loss."""
        self.leader().kill()
        self.revive()

    def revive(self) -> None:
        """Restart operators that have exited."""
        self.running = [each if each.process.poll() is None else self._start() for each in self.running]

    def stop(self) -> None:
        """Stop both."""
        for operator in self.running:
            if operator.process.poll() is None:
                operator.kill()

    def _start(self) -> Operator:
        self._count += 1
        log = self._folder / f"operator-{self._count}.log"
        identity = f"--identity=replica-{self._count}"
        return start(self._kubeconfig, log, identity, "--resync-seconds=15", *self._arguments)


@pytest.fixture
def proxy(plane: Plane, tmp_path: Path) -> Iterator[Proxy]:
    """The proxy between the operators and the API server."""
    proxy = Proxy(plane.kubeconfig, tmp_path / "proxy.kubeconfig")
    proxy.start()
    yield proxy
    proxy.stop()


def test_with_many_faults_every_stage_runs_once_and_every_status_is_correct(
    plane: Plane, proxy: Proxy, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed leaders, a killed API server, compaction, broken and stale watches, errors, lost responses together."""
    count, kills = request.config.getoption("--objects"), request.config.getoption("--kills")
    namespace = plane.namespace("chaos")
    replicas = Replicas(proxy.kubeconfig, namespace.name, tmp_path)
    names = [f"tune-{number:03}" for number in range(count)]
    wrong = set(names[::10])  # their data is malformed, for good
    for name in wrong:
        plane.kubelet.behave(name, Stage.PREPARE, fails(Stage.PREPARE, Reason.DATASET_MALFORMED))
    disasters = _disasters(plane, proxy, replicas, kills)
    waiting, share = iter(names), -(-count // len(disasters))
    try:
        for disaster in disasters:
            for name in islice(waiting, share):
                _insist(lambda name=name: namespace.apply(name))
            replicas.leader()
            eventually(lambda: proxy.watches() >= WATCHES, "the leader watches")
            _wait_for_work(plane, share)
            disaster()
        proxy.faults = Faults()
        eventually(lambda: replicas.revive() or _ended(namespace) == count, "all have ended", seconds=60 + 3 * count)
        assert _outcome(namespace) == {name: "Failed" if name in wrong else "Succeeded" for name in names}
    finally:
        replicas.stop()
    assert _starts(plane, names) == {name: (1, 0, 0, 0) if name in wrong else (1, 1, 1, 1) for name in names}, (
        "a stage was done twice, or not at all"
    )
    jobs = {name: len(namespace.jobs(name)) for name in names}
    assert jobs == {name: 1 if name in wrong else 3 for name in names}
    happened = {fault: times for fault, times in proxy.done.items() if times}
    print(f"{count} objects, {kills} leaders killed; of the other faults: {happened}")
    assert {"too_many", "broken", "lost", "slow", "twice", "swapped", "cut"} <= happened.keys(), happened


def _disasters(plane: Plane, proxy: Proxy, replicas: Replicas, kills: int) -> list[Callable[[], None]]:
    """Return the faults, one after the other; kills in between."""

    def refuse() -> None:
        proxy.faults = Faults(too_many=0.06, broken=0.06, slow=0.06, lost=0.06)

    def lie() -> None:
        proxy.faults = Faults(twice=0.3, swapped=0.2, lost=0.02)

    def forget() -> None:
        _compact(plane)
        proxy.cut_watches()

    def fall_silent() -> None:
        proxy.faults = Faults(deaf=True)

    def kill_the_api_server() -> None:
        os.kill(plane.process("kube-apiserver")[0], signal.SIGKILL)
        eventually(plane.ready, "the API server is back", seconds=60)

    others = [refuse, lie, forget, kill_the_api_server, fall_silent]
    pairs = zip(range(max(kills, len(others))), cycle(others), strict=False)
    return [each for turn, other in pairs for each in (other, *((replicas.kill_the_leader,) if turn < kills else ()))]


def _compact(plane: Plane) -> None:
    """Compact etcd, so that a watch from an older version is rejected with 410."""
    arguments = plane.process("etcd")[1]
    url = next(each for each in arguments if each.startswith("--listen-client-urls=")).partition("=")[2]
    everything = {"key": base64.b64encode(b"\0").decode(), "range_end": base64.b64encode(b"\0").decode()}
    now = urllib3.request("POST", f"{url}/v3/kv/range", json={**everything, "limit": 1, "keys_only": True}).json()
    answer = urllib3.request("POST", f"{url}/v3/kv/compaction", json={"revision": now["header"]["revision"]})
    assert answer.status == 200, answer.data


def _wait_for_work(plane: Plane, starts: int) -> None:
    """Wait until this many more stages have started, or nothing changes for a while: a fault must affect work."""
    before, deadline = len(plane.kubelet.started), time.monotonic() + 20
    eventually(
        lambda: len(plane.kubelet.started) >= before + starts or time.monotonic() > deadline,
        "work continues",
        seconds=30,
    )


def _insist(create: Callable[[], object]) -> None:
    """Create an object, with retries while the API server is unavailable."""

    def created() -> bool:
        try:
            create()
        except ApiError as error:
            return error.code == 409  # the answer to an earlier try was lost
        except urllib3.exceptions.HTTPError:
            return False
        return True

    eventually(created, "the API server takes the object")


def _outcome(namespace: Namespace) -> dict[str, str]:
    items = namespace.plane.api.get(namespace.path(PLURAL))["items"]
    return {item["metadata"]["name"]: item.get("status", {}).get("phase", "") for item in items}


def _ended(namespace: Namespace) -> int:
    try:
        return sum(phase in ENDED for phase in _outcome(namespace).values())
    except (ApiError, urllib3.exceptions.HTTPError):
        return 0


def _starts(plane: Plane, names: list[str]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(plane.kubelet.starts_of(name, stage) for stage in Stage) for name in names}

"""The processes of a node that train together: which ones start, how they end together, and whose exit code counts."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tunemill_api.finetune import FineTuneSpec
from tunemill_api.run_spec import RunSpec
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import rank_processes
from tunemill_trainer.process.rank_processes import Ended, Node
from tunemill_trainer.process.ranks import ENV_PLACE, Place

WAITS = "import time; time.sleep(60)"


def ends(code: int, after: float = 0.0) -> str:
    """Return a program that ends with a code."""
    return f"import sys, time; time.sleep({after}); sys.exit({code})"


def run(*programs: str, on_gpus: bool = False) -> Ended:
    """Run each program as a rank of one node."""
    places = [Place(at, len(programs), at, len(programs), "127.0.0.1", 1) for at in range(len(programs))]
    return rank_processes.run(places, [[sys.executable, "-c", program] for program in programs], on_gpus=on_gpus)


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ((ends(0), ends(0)), Ended(0, 0)),
        ((WAITS, ends(64)), Ended(64, 1)),
        ((WAITS, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), Ended(137, 1)),
        ((ends(76), ends(64, after=0.5)), Ended(64, 1)),
        ((ends(75), ends(76)), Ended(75, 0)),
        ((ends(75, after=0.2), ends(70)), Ended(70, 1)),
        ((ends(0), ends(75, after=0.2)), Ended(75, 1)),
    ],
    ids=["done", "own reason", "killed", "own reason after a lost peer", "stopped", "failed while stopping", "late"],
)
def test_the_pod_exits_with_the_reason_of_the_failed_rank(
    programs: tuple[str, ...], expected: Ended, monkeypatch: pytest.MonkeyPatch
):
    """A failed rank ends the others, and a lost peer is reported only without another reason."""
    # On a busy machine, a rank may need seconds to start.
    monkeypatch.setattr(rank_processes, "_OWN_REASON_SECONDS", 60.0)
    started = time.monotonic()
    assert run(*programs) == expected
    assert time.monotonic() - started < 30, "a rank was waited for although another one had failed"


def test_a_rank_that_waits_for_a_lost_peer_is_ended(monkeypatch: pytest.MonkeyPatch):
    """A rank that hangs in an exchange does not keep the pod running."""
    monkeypatch.setattr(rank_processes, "_OWN_REASON_SECONDS", 0.2)
    assert run(ends(76), WAITS) == Ended(76, 0)


def test_every_rank_gets_a_request_to_stop_once(tmp_path: Path):
    """One SIGTERM to the node's process reaches each rank once, and Ctrl-C becomes SIGTERM."""
    program = f"""
import os, signal, sys, time
from pathlib import Path
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
(Path({str(tmp_path)!r}) / str(os.getpid())).touch()
while not got:
    time.sleep(0.02)
time.sleep(0.3)
sys.exit(75 if len(got) == 1 else 1)
"""
    done = threading.Event()

    def stop_when_ready() -> None:
        while len(list(tmp_path.iterdir())) < 2 and not done.wait(0.02):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    assert run(program, program).code == 75
    done.set()


def test_a_rank_that_does_not_stop_in_time_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A rank in an exchange does not exceed the grace period."""
    monkeypatch.setenv("TUNEMILL_GRACE_SECONDS", "0")
    monkeypatch.setattr(rank_processes, "_AFTER_GRACE_SECONDS", 0.2)
    deaf = f"""
import signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path({str(tmp_path / "ready")!r}).touch()
time.sleep(60)
"""

    def stop_when_ready() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_ready, daemon=True).start()
    assert run(deaf).code == 75


def test_a_rank_does_not_outlive_the_process_that_started_it(tmp_path: Path):
    """A killed parent leaves no rank behind, which would write checkpoints together with the next attempt."""
    file = tmp_path / "pid"
    rank = f"""
import os, time
from pathlib import Path
from tunemill_trainer.process import rank_processes
from tunemill_trainer.process.ranks import Place
rank_processes.end_with_parent(Place.from_environment())
Path({str(file)!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    parent = f"""
import sys
from tunemill_trainer.process import rank_processes
from tunemill_trainer.process.ranks import Place
rank_processes.run([Place(0, 2)], [[sys.executable, "-c", {rank!r}]], on_gpus=False)
"""
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        while not file.exists() or not file.read_text():
            time.sleep(0.05)
        process.kill()
    pid = int(file.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "(zombie)" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the rank still runs")


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1"]), ("3,GPU-abc", ["3", "GPU-abc"]), ("5", ["5", ""])]
)
def test_each_rank_sees_its_own_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]
):
    """Also where the platform or the user has set the visible devices."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("WORLD_SIZE", "2")
    wanted = ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", ENV_PLACE)
    programs = [
        "import json, os; from pathlib import Path; "
        f"Path({str(tmp_path / str(at))!r}).write_text(json.dumps({{name: os.environ.get(name) for name in {wanted}}}))"
        for at in range(2)
    ]
    assert run(*programs, on_gpus=True).code == 0
    seen = [json.loads((tmp_path / str(at)).read_text()) for at in range(2)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in seen] == expected
    assert [Place.from_environment(each).index for each in seen] == [0, 1]
    assert [each["WORLD_SIZE"] for each in seen] == [None, None], "accelerate would start a group of its own"


def a_run(*, local: bool = False, **compute: int) -> RunSpec:
    """Return a run with these fields of spec.compute."""
    spec = {
        "baseModel": {"id": "acme/base"},
        "dataset": {"uri": "s3://bucket/calls.jsonl"},
        "publish": {"repository": "acme/tuned"},
        "compute": compute,
    }
    return RunSpec(namespace="team", name="tools", run_id="r1", spec=FineTuneSpec.model_validate(spec), local=local)


POD = {"TUNEMILL_NODES": "3", "TUNEMILL_NODE_RANK": "1", "TUNEMILL_COORDINATOR": "job-0.svc"}


def test_a_node_has_a_rank_per_gpu_or_one_on_the_cpu():
    """Ranks are numbered over nodes, and one device needs no group."""
    assert Node.of(a_run(gpus=0), {}).all_ranks == 1
    assert Node.of(a_run(gpus=4), {}).all_ranks == 4
    node = Node.of(a_run(gpus=2, nodes=3), POD)
    assert [(place.index, place.count, place.local_index, place.node) for place in node.places()] == [
        (2, 6, 0, 1),
        (3, 6, 1, 1),
    ]
    assert (node.host, node.port) == ("job-0.svc", 29500)
    assert Node.of(a_run(gpus=0), POD | {"TUNEMILL_COORDINATOR": "host:31000"}).port == 31000


def test_one_machine_has_the_ranks_of_all_nodes():
    """`tunemill run` starts as many ranks as the manifest requests, also on the CPU."""
    assert [place.local_index for place in Node.of(a_run(gpus=0, nodes=2, local=True), {}).places()] == [0, 1]
    assert Node.of(a_run(gpus=2, nodes=2, local=True), {}).all_ranks == 4
    # A pod without the variables is the only one: an operator of an earlier version made it.
    assert Node.of(a_run(gpus=0, nodes=2), {}).all_ranks == 1


@pytest.mark.parametrize("wrong", [{"TUNEMILL_NODE_RANK": "3"}, {"TUNEMILL_COORDINATOR": ""}])
def test_contradicting_variables_of_a_pod_are_refused(wrong: dict[str, str]):
    """A pod with a wrong index fails instead of waiting for a missing rank."""
    with pytest.raises(StageError, match="TUNEMILL_COORDINATOR"):
        Node.of(a_run(gpus=0), POD | wrong)

"""Processes are identified by more than the pid; the supervisor restarts components and stops with its parent."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.plan import Component, Plan
from tunemill_dev.cluster.processes import ProcessId, replace_file, run, wait_until

_SLEEP = ("sleep", "300")


def test_a_process_is_alive_until_it_is_killed(tmp_path: Path) -> None:
    """A saved identity still refers to its process, and killing it ends that process."""
    with subprocess.Popen(_SLEEP) as child:
        recorded = ProcessId.of(child.pid)
        assert recorded
        recorded.write(tmp_path / "pid")
        read = ProcessId.read(tmp_path / "pid")
        assert read == recorded
        assert read.is_alive()
        read.kill()
        assert not read.is_alive()
        assert child.wait(timeout=10) == -9


@pytest.mark.parametrize(
    "change", [{"start_ticks": 1}, {"boot": "of-last-week"}], ids=["recycled pid", "after a reboot"]
)
def test_another_process_with_the_same_pid_is_not_killed(change: dict[str, object]) -> None:
    """The record may be stale."""
    with subprocess.Popen(_SLEEP) as stranger:
        now = ProcessId.of(stranger.pid)
        assert now
        stale = dataclasses.replace(now, **change)  # type: ignore[arg-type]
        assert not stale.is_alive()
        stale.kill()
        assert stranger.poll() is None
        stranger.kill()


def test_a_command_name_with_brackets_and_spaces_is_parsed(tmp_path: Path) -> None:
    """The fields of /proc/PID/stat are counted from the last bracket."""
    for folder in ("7", "sys/kernel/random"):
        (tmp_path / folder).mkdir(parents=True)
    fields = " ".join(str(number) for number in range(4, 40))
    (tmp_path / "7/stat").write_text(f"7 (a ) R (b) S {fields}")
    (tmp_path / "sys/kernel/random/boot_id").write_text("this-boot\n")
    assert ProcessId.of(7, proc=tmp_path) == ProcessId(7, 22, "this-boot")


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', "[]"])
def test_a_truncated_record_is_ignored(tmp_path: Path, text: str) -> None:
    """After a crash during the write."""
    (tmp_path / "pid").write_text(text)
    assert ProcessId.read(tmp_path / "pid") is None


def test_a_failed_command_is_reported_with_its_output() -> None:
    """The error has the purpose, the exit code and the output."""
    with pytest.raises(ClusterError, match=r"Feeding the cat failed \(exit code 3\):\nno fish"):
        run(["sh", "-c", "echo no fish >&2; exit 3"], what="Feeding the cat failed")


def test_a_missing_command_is_reported_in_one_sentence() -> None:
    """Without a traceback."""
    with pytest.raises(ClusterError, match="The command no-such-program was not found"):
        run(["no-such-program", "--help"])


def test_a_replaced_file_is_private_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    """State files contain credentials."""
    replace_file(tmp_path / "secret", "x")
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("secret", 0o600)]


def _supervise(folder: Path, *components: Component, setup: tuple[tuple[str, ...], ...] = ()) -> subprocess.Popen[str]:
    plan = Plan(components, logs=str(folder / "logs"), status=str(folder / "status"), setup=setup, lifeline=True)
    plan.write(folder / "plan")
    return subprocess.Popen(
        [sys.executable, "-m", "tunemill_dev.cluster.supervisor", str(folder / "plan")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _go(supervisor: subprocess.Popen[str]) -> None:
    assert supervisor.stdin
    assert supervisor.stdout
    assert int(supervisor.stdout.readline()) == supervisor.pid
    supervisor.stdin.write("go\n")
    supervisor.stdin.flush()


def _status(folder: Path, name: str) -> dict[str, object]:
    file = folder / "status"
    state: dict[str, object] = json.loads(file.read_text())[name] if file.exists() else {}
    return state


def test_a_component_that_exits_is_restarted(tmp_path: Path) -> None:
    """The number of restarts and the last exit code are recorded."""
    dying = Component("dying", ("sh", "-c", "exit 7"))
    with _supervise(tmp_path, dying) as supervisor:
        _go(supervisor)
        assert wait_until(lambda: int(str(_status(tmp_path, "dying").get("restarts", 0))) >= 2, seconds=20)
        assert _status(tmp_path, "dying")["last_exit"] == 7


def test_a_component_waits_for_its_dependencies(tmp_path: Path) -> None:
    """Nothing listens on the address, so the second component never starts while the first runs."""
    first = Component("first", _SLEEP)
    second = Component("second", ("touch", str(tmp_path / "started")), needs=(f"unix:{tmp_path}/socket",))
    with _supervise(tmp_path, first, second) as supervisor:
        _go(supervisor)
        assert wait_until(lambda: bool(_status(tmp_path, "first").get("running")), seconds=20)
        assert _status(tmp_path, "second") == {"running": False, "restarts": 0, "last_exit": None}
    assert not (tmp_path / "started").exists()


def test_all_components_stop_when_the_supervisor_dies(tmp_path: Path) -> None:
    """They detect the closed pipe."""
    pid_file = tmp_path / "pid"
    component = Component("long", ("sh", "-c", f"echo $$ >{pid_file}; exec sleep 300"))
    with _supervise(tmp_path, component) as supervisor:
        _go(supervisor)
        assert wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), seconds=20)
        orphan = ProcessId.of(int(pid_file.read_text()))
        assert orphan
        assert supervisor.stdin
        supervisor.stdin.close()
        assert supervisor.wait(timeout=20) == 0
        assert wait_until(lambda: not orphan.is_alive(), seconds=20)


def test_a_supervisor_that_dies_during_startup_leaves_no_process(tmp_path: Path) -> None:
    """Components start only after the word `go`."""
    with _supervise(tmp_path, Component("any", ("touch", str(tmp_path / "started")))) as supervisor:
        assert supervisor.stdin
        supervisor.stdin.close()
        assert supervisor.wait(timeout=20) == 1
    assert not (tmp_path / "started").exists()


def test_a_failing_setup_command_is_named_in_the_log(tmp_path: Path) -> None:
    """An incomplete network namespace must not be used."""
    with _supervise(tmp_path, Component("any", _SLEEP), setup=(("ls", os.devnull + "/nowhere"),)) as supervisor:
        _go(supervisor)
        assert supervisor.wait(timeout=20) == 1
    assert "ls /dev/null/nowhere failed" in (tmp_path / "logs/supervisor.log").read_text()

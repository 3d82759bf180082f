"""The number of threads follows the pod's CPU limit."""

import os
from pathlib import Path

import pytest
from tunemill_trainer.process import cpus


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
        ({"cpu.max": "99900000 100000\n"}, 64),
    ],
    ids=["half", "one and a half", "v2 without", "v1", "v1 without", "no cgroup", "more than there are"],
)
def test_the_cpu_quota_of_the_cgroup_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """Both versions of cgroups are read, on a node with 64 CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(64)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus.available(tmp_path) == expected

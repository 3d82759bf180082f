"""How many threads a pod may use well: its CPU limit, which Python and OpenMP do not look at."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = _CGROUPS) -> int:
    """Return the CPUs that this process may use, rounded up: of the machine, of its affinity and of its cgroup's quota.

    A pod limited to one CPU on a node with 64 would otherwise start 64 threads that wait for each other.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroups))))


def _quota(cgroups: Path) -> float:
    """Return the CPUs of the quota, for cgroup v2 and v1; infinite when there is none."""
    unified, quota, period = cgroups / "cpu.max", cgroups / "cpu/cpu.cfs_quota_us", cgroups / "cpu/cpu.cfs_period_us"
    if unified.is_file():
        limit, length = unified.read_text().split()
        return math.inf if limit == "max" else int(limit) / int(length)
    if quota.is_file() and int(quota.read_text()) > 0:
        return int(quota.read_text()) / int(period.read_text())
    return math.inf

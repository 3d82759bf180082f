"""The number of CPUs that a pod may use, including its CPU limit, which Python and OpenMP ignore."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def available(cgroups: Path = _CGROUPS) -> int:
    """Return the number of CPUs that this process may use: its affinity or its cgroup's quota, rounded up.

    Otherwise a pod with a limit of one CPU on a node with 64 would start 64 threads.
    """
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), _quota(cgroups))))


def _quota(cgroups: Path) -> float:
    """Return the CPU quota, for cgroup v2 and v1; infinite without a quota."""
    unified, quota, period = cgroups / "cpu.max", cgroups / "cpu/cpu.cfs_quota_us", cgroups / "cpu/cpu.cfs_period_us"
    if unified.is_file():
        limit, length = unified.read_text().split()
        return math.inf if limit == "max" else int(limit) / int(length)
    if quota.is_file() and int(quota.read_text()) > 0:
        return int(quota.read_text()) / int(period.read_text())
    return math.inf

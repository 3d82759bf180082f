"""The machine's kernel settings that clusters change: saved by the first cluster, restored after the last."""

from __future__ import annotations

import json
from pathlib import Path

from tunemill_dev.cluster.home import home
from tunemill_dev.cluster.processes import replace_file

_SYSCTL = Path("/proc/sys")
# The kubelet sets all but the first, which the cluster's link to the host needs.
_NAMES = (
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def remember(*, memory: Path | None = None, sysctl: Path = _SYSCTL) -> None:
    """Save the present values, unless a cluster of this boot already did."""
    memory = memory or _memory()
    if _saved(memory, sysctl) is None:
        values = {name: (sysctl / name).read_text().strip() for name in _NAMES if (sysctl / name).exists()}
        replace_file(memory, json.dumps({"boot": _boot(sysctl), "values": values}))


def restore(*, memory: Path | None = None, sysctl: Path = _SYSCTL) -> None:
    """Write the saved values back and forget them; nothing to do when a reboot already did."""
    memory = memory or _memory()
    for name, value in (_saved(memory, sysctl) or {}).items():
        if (sysctl / name).read_text().strip() != value:
            (sysctl / name).write_text(value)
    memory.unlink(missing_ok=True)


def _memory() -> Path:
    return home() / "clusters" / "kernel-settings.json"


def _saved(memory: Path, sysctl: Path) -> dict[str, str] | None:
    try:
        saved = json.loads(memory.read_text())
    except (FileNotFoundError, ValueError):
        return None
    values: dict[str, str] = saved["values"]
    return values if saved["boot"] == _boot(sysctl) else None


def _boot(sysctl: Path) -> str:
    return (sysctl / "kernel/random/boot_id").read_text().strip()

"""The plan of the supervisor, as JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunemill_dev.cluster.processes import replace_file


@dataclass(frozen=True)
class Component:
    """One long-running process."""

    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Start condition: `tcp:HOST:PORT` or `unix:PATH` accepts connections, or `https://…` responds with 200."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A process tree."""

    components: tuple[Component, ...]
    logs: str
    status: str
    setup: tuple[tuple[str, ...], ...] = ()
    """Commands that prepare the namespaces before anything starts."""
    lifeline: bool = False
    """Stop everything when standard input closes, because the process that started the tree has died."""

    def write(self, path: Path) -> None:
        """Save the plan."""
        replace_file(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Load a plan that `write` saved."""
        raw = json.loads(path.read_text())
        components = tuple(
            Component(part["name"], tuple(part["argv"]), tuple(part["needs"]), part["environment"])
            for part in raw.pop("components")
        )
        setup = tuple(tuple(command) for command in raw.pop("setup"))
        return cls(components=components, setup=setup, **raw)

"""The addresses of a cluster: a /16 network that is unused on the machine. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.processes import replace_file

_BLOCKS = range(96, 128)
_REGISTRY_PORT = 30500


@dataclass(frozen=True)
class Addresses:
    """The block 10.N.0.0/16: Services in its first /20, pods in 10.N.64.0/20, and the link to the host at its end.

    The first cluster gets N = 96, so that its DNS server has the address that Kubernetes' own documents use.
    """

    block: int

    @classmethod
    def choose(cls, taken: Iterable[IPv4Network]) -> Addresses:
        """Return the first block that overlaps no network in `taken`. ClusterError if all are in use."""
        used = list(taken)
        for block in _BLOCKS:
            candidate = cls(block)
            if not any(candidate.network.overlaps(network) for network in used):
                return candidate
        raise ClusterError(
            f"Every network from {cls(_BLOCKS[0]).network} to {cls(_BLOCKS[-1]).network} is routed on this machine or "
            "belongs to another local cluster. Stop one with `down --name NAME`."
        )

    @classmethod
    def read(cls, path: Path) -> Addresses | None:
        """Return the addresses recorded in a file; None if there are none."""
        try:
            return cls(int(json.loads(path.read_text())["block"]))
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def write(self, path: Path) -> None:
        """Record these addresses."""
        replace_file(path, json.dumps({"block": self.block}))

    @property
    def network(self) -> IPv4Network:
        """The network of this cluster."""
        return IPv4Network((f"10.{self.block}.0.0", 16))

    @property
    def services(self) -> IPv4Network:
        """The network of the Services."""
        return IPv4Network((f"10.{self.block}.0.0", 20))

    @property
    def pods(self) -> IPv4Network:
        """Pod addresses."""
        return IPv4Network((f"10.{self.block}.64.0", 20))

    @property
    def api(self) -> str:
        """The address of the Service `kubernetes`."""
        return str(self.services[1])

    @property
    def dns(self) -> str:
        """The address of the cluster's DNS server."""
        return str(self.services[10])

    @property
    def host(self) -> str:
        """The host's end of the link."""
        return f"10.{self.block}.255.1"

    @property
    def registry(self) -> str:
        """Host and port at which a registry on the host serves plain HTTP to the node and to pods."""
        return f"{self.host}:{_REGISTRY_PORT}"

    @property
    def node(self) -> str:
        """The node's end of the link."""
        return f"10.{self.block}.255.2"

    @property
    def interface(self) -> str:
        """The name of the host's end of the link (15 characters at most)."""
        return f"tunemill{self.block}"


def routed_networks(routes: str) -> list[IPv4Network]:
    """Return the destinations in the output of `ip -json -4 route`, without the default route."""
    return [IPv4Network(route["dst"]) for route in json.loads(routes) if route["dst"] != "default"]

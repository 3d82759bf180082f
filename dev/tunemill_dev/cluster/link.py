"""The link between a cluster's network namespace and the machine: a veth pair, a route, packet filter rules."""

from __future__ import annotations

import shlex
from pathlib import Path

from tunemill_dev.cluster.addresses import Addresses
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.processes import ProcessId, run, succeeds

_INSIDE = "eth0"


def connect(cluster: str, addresses: Addresses, init: ProcessId) -> None:
    """Connect the network namespace of a process to the machine's network, with masquerading for outgoing packets."""
    link, inside = addresses.interface, str(addresses.network)
    run(["ip", "link", "add", link, "type", "veth", "peer", "name", _INSIDE, "netns", str(init.pid)])
    run(["ip", "address", "add", f"{addresses.host}/30", "dev", link])
    run(["ip", "link", "set", link, "up"])
    rules = (
        ("nat", "POSTROUTING", "-s", inside, "!", "-d", inside, "!", "-o", link, "-j", "MASQUERADE"),
        # Other software on the machine may drop forwarded packets by default.
        ("filter", "FORWARD", "-i", link, "-j", "ACCEPT"),
        ("filter", "FORWARD", "-o", link, "-j", "ACCEPT"),
    )
    for table, chain, *rule in rules:
        run(["iptables", "-w", "-t", table, "-I", chain, *rule, "-m", "comment", "--comment", _comment(cluster)])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    run(["ip", "route", "add", inside, "via", addresses.node, "dev", link])


def disconnect(cluster: str, addresses: Addresses | None) -> None:
    """Undo `connect`, even if it was only partly done."""
    link = Path("/sys/class/net", addresses.interface) if addresses else None
    # The kernel deletes the link by itself once the cluster's namespace is gone, which may be at this very moment.
    if link and link.exists() and not succeeds(["ip", "link", "delete", link.name]) and link.exists():
        raise ClusterError(f"The network link {link.name} could not be deleted; try `ip link delete {link.name}`.")
    for table in ("nat", "filter"):
        for rule in rules_of(cluster, run(["iptables", "-w", "-t", table, "-S"])):
            run(["iptables", "-w", "-t", table, "-D", *rule])


def inside_commands(addresses: Addresses) -> tuple[tuple[str, ...], ...]:
    """What to run in the namespace, once `connect` has put the other end there."""
    return (
        ("ip", "link", "set", "lo", "up"),
        ("ip", "address", "add", f"{addresses.node}/30", "dev", _INSIDE),
        ("ip", "link", "set", _INSIDE, "up"),
        ("ip", "route", "add", "default", "via", addresses.host),
        ("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
    )


def rules_of(cluster: str, listing: str) -> list[list[str]]:
    """The rules of a cluster in what `iptables -S` prints, each as chain and arguments, ready for `iptables -D`."""
    rules = [shlex.split(line) for line in listing.splitlines()]
    return [words[1:] for words in rules if words[0] == "-A" and _comment(cluster) in words]


def _comment(cluster: str) -> str:
    return f"tunemill:{cluster}"

"""Addresses of a local cluster, and its packet filter rules."""

import json
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path

import pytest
from tunemill_dev.cluster.addresses import Addresses, routed_networks
from tunemill_dev.cluster.console import ClusterError
from tunemill_dev.cluster.link import rules_of
from tunemill_dev.cluster.node import resolver_config


def test_the_first_cluster_uses_the_usual_dns_address() -> None:
    """On a machine without conflicting routes it is 10.96.0.10."""
    assert Addresses.choose([IPv4Network("192.0.2.0/24")]).dns == "10.96.0.10"


def test_two_clusters_share_no_address() -> None:
    """The second cluster avoids the first one's block."""
    first = Addresses.choose([])
    second = Addresses.choose([first.network])
    assert not first.network.overlaps(second.network)


def test_a_network_that_overlaps_a_route_is_skipped() -> None:
    """A single routed address inside a block excludes the block."""
    chosen = Addresses.choose([IPv4Network("10.96.7.7/32"), IPv4Network("10.97.0.0/30")])
    assert chosen.block == 98


def test_a_fully_routed_range_is_an_error_with_a_message() -> None:
    """For example a company network of 10.0.0.0/8; the message names the range."""
    with pytest.raises(ClusterError, match=r"10\.96\.0\.0/16 to 10\.127\.0\.0/16"):
        Addresses.choose([IPv4Network("10.0.0.0/8")])


def test_services_pods_and_link_have_separate_ranges_in_the_block() -> None:
    """The ranges do not overlap."""
    addresses = Addresses(101)
    link = IPv4Network((addresses.host, 30), strict=False)
    parts = [addresses.services, addresses.pods, link]
    assert all(part.subnet_of(addresses.network) for part in parts)
    assert not any(one.overlaps(other) for one, other in combinations(parts, 2))
    assert IPv4Network((addresses.node, 30), strict=False) == link


def test_the_interface_name_fits_the_kernel() -> None:
    """Linux allows 15 characters."""
    assert all(len(Addresses(block).interface) <= 15 for block in range(96, 128))


def test_addresses_survive_a_restart_and_a_truncated_file(tmp_path: Path) -> None:
    """A chosen block is read again; a truncated file is ignored."""
    file = tmp_path / "network.json"
    assert Addresses.read(file) is None
    Addresses(99).write(file)
    assert Addresses.read(file) == Addresses(99)
    file.write_text('{"blo')
    assert Addresses.read(file) is None


def test_the_default_route_is_ignored() -> None:
    """Otherwise no machine with a network could have a cluster."""
    routes = json.dumps([{"dst": "default", "gateway": "192.0.2.1"}, {"dst": "10.1.0.0/16"}, {"dst": "10.2.3.4"}])
    assert routed_networks(routes) == [IPv4Network("10.1.0.0/16"), IPv4Network("10.2.3.4/32")]


def test_only_the_clusters_own_rules_are_deleted() -> None:
    """Rules of a cluster with the same name prefix, and foreign rules, stay."""
    listing = "\n".join(
        [
            "-P FORWARD DROP",
            '-A FORWARD -i tunemill96 -m comment --comment "tunemill:a" -j ACCEPT',
            '-A FORWARD -i tunemill97 -m comment --comment "tunemill:ab" -j ACCEPT',
            '-A FORWARD -i eth0 -m comment --comment "about tunemill:a" -j ACCEPT',
        ]
    )
    assert rules_of("a", listing) == [
        ["FORWARD", "-i", "tunemill96", "-m", "comment", "--comment", "tunemill:a", "-j", "ACCEPT"]
    ]


def test_pods_never_get_a_nameserver_on_the_hosts_loopback() -> None:
    """It is not reachable from the cluster's network."""
    kept = resolver_config("search example\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.53\n")
    assert kept == "search example\nnameserver 192.0.2.53\n"

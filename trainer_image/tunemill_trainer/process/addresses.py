"""Blocks connections to link-local addresses and to the metadata services of nodes.

The metadata service of a cloud gives out the credentials of the node to all its processes. An endpoint in a spec may be
such an address, or a name that resolves to one. So endpoints are resolved and checked for a clear error message, and
every connection of the process is checked again, which covers redirects and changed DNS records.
"""

import os
import socket
import sys
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError

REFUSED: Final = tuple(
    ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: the metadata services of AWS, Google Cloud, Azure and others
        "fe80::/10",  # link-local
        "fd00:ec2::254/128",  # AWS
        "fd20:ce::254/128",  # Google Cloud
        "100.100.100.200/32",  # Alibaba Cloud
        "168.63.129.16/32",  # Azure
        "192.0.0.192/32",  # Oracle Cloud
    )
)
"""Link-local addresses and those of metadata services."""

_IMDS: Final = frozenset({ip_address("169.254.169.254"), ip_address("fd00:ec2::254")})
_ECS: Final = ip_address("169.254.170.2")
"""The host of AWS_CONTAINER_CREDENTIALS_RELATIVE_URI."""
_NAT64: Final = ip_network("64:ff9b::/96")

Address = IPv4Address | IPv6Address


class RefusedAddressError(OSError):
    """A connection to a blocked address."""


def check(endpoint: str, field: str) -> None:
    """Check all addresses of an endpoint's host.

    Args:
        endpoint: a URL; empty means the public service, which is not checked.
        field: the field of the spec with the endpoint, for the message.

    Raises:
        StageError: InvalidSpec, when an address is link-local or that of a metadata service. A host that does not
            resolve is not an error here: the client reports it.
    """
    host = urlsplit(endpoint).hostname
    if not host:
        return
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return
    for address in sorted(found):
        if _is_refused(address):
            raise StageError(
                Reason.INVALID_SPEC,
                f"{field} resolves to {address} (host {host}): link-local addresses and metadata services of nodes are "
                f"not allowed; change {field}",
            )


@cache
def guard() -> None:
    """Block connections of this process to such addresses from now on.

    Allowed are the addresses for pod identities (AWS_CONTAINER_CREDENTIALS_FULL_URI and _RELATIVE_URI), and the AWS
    metadata service unless AWS_EC2_METADATA_DISABLED is true.
    """
    sys.addaudithook(_on_event)


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect":
        return
    target = arguments[1]
    if not isinstance(target, tuple) or not target or not isinstance(target[0], str):
        return  # a Unix socket
    if _is_refused(target[0]) and _parsed(target[0]) not in _of_identities():
        raise RefusedAddressError(f"connections to {target[0]} are blocked: it is link-local or a metadata service")


def _is_refused(address: str) -> bool:
    parsed = _parsed(address)
    return parsed is not None and any(parsed in network for network in REFUSED if network.version == parsed.version)


def _parsed(address: str) -> Address | None:
    """Parse an address; an IPv4 address embedded in IPv6 is returned as IPv4. None for a host name."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, IPv4Address):
        return parsed
    if parsed in _NAT64:
        return IPv4Address(int(parsed) & 0xFFFFFFFF)
    return parsed.ipv4_mapped or parsed.sixtofour or parsed


def _of_identities() -> set[Address | None]:
    """Return the addresses from which boto3 may get credentials."""
    allowed: set[Address | None] = set()
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        allowed |= _IMDS
    if os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        allowed.add(_ECS)
    if url := os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        allowed.add(_parsed(urlsplit(url).hostname or ""))
    return allowed - {None}

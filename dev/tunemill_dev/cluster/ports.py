"""Free TCP ports for servers on this machine."""

import contextlib
import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_ports(count: int) -> list[int]:
    """Return unused ports of 127.0.0.1.

    They are below the range of ephemeral ports, because any outgoing connection may take a port of that range before
    the server binds it.
    """
    highest = int(_EPHEMERAL.read_text().split()[0])
    with contextlib.ExitStack() as stack:
        return [_bound(stack.enter_context(socket.socket()), highest) for _ in range(count)]


def _bound(one: socket.socket, highest: int) -> int:
    while True:
        port = random.randrange(_LOWEST, highest)
        with contextlib.suppress(OSError):  # the port is in use
            one.bind(("127.0.0.1", port))
            return port

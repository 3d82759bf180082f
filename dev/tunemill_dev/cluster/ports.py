"""Free TCP ports for servers on this machine."""

import contextlib
import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST = 10_000


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on.

    They lie below the range that the kernel takes the ports of outgoing connections from: a port of that range may be
    taken by any connection before the server binds it.
    """
    highest = int(_EPHEMERAL.read_text().split()[0])
    with contextlib.ExitStack() as stack:
        return [_bound(stack.enter_context(socket.socket()), highest) for _ in range(count)]


def _bound(one: socket.socket, highest: int) -> int:
    while True:
        port = random.randrange(_LOWEST, highest)
        with contextlib.suppress(OSError):  # somebody listens there
            one.bind(("127.0.0.1", port))
            return port

"""Probes: whether a socket accepts connections, or a URL responds."""

from __future__ import annotations

import socket
import ssl
import urllib.request


def is_there(address: str) -> bool:
    """Whether `tcp:HOST:PORT` or `unix:PATH` accepts a connection, or `http(s)://…` answers with 200."""
    kind, _, place = address.partition(":")
    if kind in {"http", "https"}:
        return _answers(address)
    family, target = (socket.AF_UNIX, place) if kind == "unix" else (socket.AF_INET, _host_and_port(place))
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(target) == 0


def _answers(url: str) -> bool:
    # Readiness is not secret, so the certificate need not be verified.
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=2, context=trusting) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _host_and_port(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host, int(port)

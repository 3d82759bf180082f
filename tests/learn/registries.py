"""Starts a real OCI registry, the CNCF's distribution, on this machine."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from learn.servers import wait_until_it_answers
from tunemill_dev.cluster.binaries import REGISTRY, ensure
from tunemill_dev.cluster.pki import Authority
from tunemill_dev.cluster.ports import free_ports

USER, PASSWORD = "alice", "let-me-in"
_HASHED = "$2b$04$j0M7Ym6.dNBIBLEKOi/LgeBEZhiK/BrgekTRNbY5pwaIZzYz5BWzO"
"""The bcrypt hash of PASSWORD."""


@contextmanager
def a_registry(
    folder: Path, authority: Authority | None = None, *, login: bool = True, address: str = ""
) -> Iterator[str]:
    """Serve an empty registry, and yield its host and port.

    Args:
        folder: for its files.
        authority: signs the certificate of the registry; without one it serves plain HTTP.
        login: whether it asks for USER and PASSWORD.
        address: its host and port; by default a free port on the loopback interface.
    """
    program = ensure([REGISTRY])["registry"] / "registry"
    address = address or f"127.0.0.1:{free_ports(1)[0]}"
    http: dict[str, object] = {"addr": address, "secret": "of-tests"}
    if authority is not None:
        authority.sign("registry", user="registry", hosts=["127.0.0.1"])
        http["tls"] = {
            "certificate": str(authority.certificate("registry")),
            "key": str(authority.key("registry")),
        }
    folder.mkdir(exist_ok=True)
    (folder / "htpasswd").write_text(f"{USER}:{_HASHED}\n")
    config: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
    }
    if login:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(config))
    log = folder / "registry.log"
    with log.open("w") as output:
        server = subprocess.Popen([program, str(folder / "config.yml")], stdout=output, stderr=output)
    try:
        wait_until_it_answers(server, f"http{'s' if authority else ''}://{address}/v2/", log)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)

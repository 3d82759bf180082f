"""What runs in the cluster before anything of ours: DNS, and the S3 and Hub servers of the namespace tunemill-dev.

The manifests are plain YAML with `${…}` for images, and any cluster can take those of the namespace: see `services`.
"""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Template

from tunemill_dev.cluster.home import SOURCES
from tunemill_dev.cluster.processes import replace_file

NAMESPACE = "tunemill-dev"
HUB_USER = "dev"
HUB_ORGANISATION = "acme"
_MANIFESTS = SOURCES / "manifests"


def _token(prefix: str = "") -> str:
    return prefix + secrets.token_hex(20)


@dataclass(frozen=True)
class Credentials:
    """Made at a cluster's first start, kept in its state folder and in Secrets."""

    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10).upper())
    s3_secret_key: str = field(default_factory=_token, repr=False)
    hub_admin_token: str = field(default_factory=_token, repr=False)
    hub_write_token: str = field(default_factory=lambda: _token("hf_"), repr=False)
    hub_read_token: str = field(default_factory=lambda: _token("hf_"), repr=False)
    hub_scoped_token: str = field(default_factory=lambda: _token("hf_"), repr=False)

    @classmethod
    def ensure(cls, path: Path) -> Credentials:
        """The credentials in this file, made when there are none."""
        if path.exists():
            return cls(**json.loads(path.read_text()))
        made = cls()
        replace_file(path, json.dumps(asdict(made)))
        return made

    def hub_accounts(self) -> dict[str, object]:
        """One user, member of one organisation, with a token of each kind (the scoped one writes to `acme` alone)."""
        scope = {"entity": HUB_ORGANISATION, "permissions": ["repo.content.read", "repo.write"]}
        return {
            "users": {HUB_USER: {HUB_ORGANISATION: "write"}},
            "tokens": [
                {"value": self.hub_write_token, "user": HUB_USER, "role": "write", "name": "write"},
                {"value": self.hub_read_token, "user": HUB_USER, "role": "read", "name": "read"},
                {
                    "value": self.hub_scoped_token,
                    "user": HUB_USER,
                    "role": "fineGrained",
                    "name": "scoped",
                    "scopes": [scope],
                },
            ],
        }


def dns(image: str, address: str) -> str:
    """The manifests of the DNS server."""
    return _manifest("dns", coredns_image=image, dns_address=address)


def services(credentials: Credentials, *, s3_image: str, hub_image: str) -> str:
    """The manifests of the namespace tunemill-dev, with its Secrets."""
    documents = [
        _manifest("namespace"),
        _secret(
            "s3-root",
            {"AWS_ACCESS_KEY_ID": credentials.s3_access_key, "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key},
        ),
        _secret(
            "hub-accounts",
            {"accounts.json": json.dumps(credentials.hub_accounts()), "admin-token": credentials.hub_admin_token},
        ),
        _manifest("s3", s3_image=s3_image),
        _manifest("hub", hub_image=hub_image),
    ]
    return "\n---\n".join(documents)


def _manifest(name: str, **values: str) -> str:
    return Template((_MANIFESTS / f"{name}.yaml").read_text()).substitute(values)


def _secret(name: str, values: dict[str, str]) -> str:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    metadata = {"name": name, "namespace": NAMESPACE}
    import yaml

    return yaml.safe_dump({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})

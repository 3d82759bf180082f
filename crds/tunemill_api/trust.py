"""Authorities of certificates beside the public ones: of a company's own S3, Hub, proxy or collector of traces."""

import os
import re
import ssl
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import certifi

VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""What OpenSSL, httpx and Rust, what requests, and what boto3 look at. Each takes the one file for all there is."""
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


# A hundred and fifty public ones are read for it, and the operator asks every ten seconds.
@lru_cache(maxsize=1)
def beside_public(text: str) -> str:
    """Return the certificates of a bundle that are not public ones: bundles of whole systems hold these as well.

    Raises:
        ValueError: when the text holds no certificate, or one that cannot be read.
    """
    found = list(_certificates(text))
    if not found:
        raise ValueError("expected certificates, each between BEGIN CERTIFICATE and END CERTIFICATE, found none")
    public = set(_certificates(Path(certifi.where()).read_text(encoding="utf-8")))
    return "".join(ssl.DER_cert_to_PEM_cert(one) for one in dict.fromkeys(found) if one not in public)


def trust(bundle: Path, folder: Path) -> None:
    """Have all libraries of this process trust a bundle, beside what they would trust without it.

    To be called before they open connections.

    Args:
        bundle: certificates as PEM.
        folder: gets the file with all of them.

    Raises:
        ValueError: when the bundle holds no certificate, or one that cannot be read.
        OSError: when it cannot be read, or the folder not be written to.
    """
    system = ssl.get_default_verify_paths().cafile
    texts = [Path(file).read_text(encoding="utf-8") for file in (certifi.where(), system) if file]
    everything = folder / "authorities.pem"
    everything.write_text("".join([*texts, beside_public(bundle.read_text(encoding="utf-8"))]), encoding="utf-8")
    os.environ.update(dict.fromkeys(VARIABLES, str(everything)))


def _certificates(text: str) -> Iterator[bytes]:
    """Yield each certificate as DER."""
    for number, found in enumerate(_PEM.findall(text), start=1):
        try:
            der = ssl.PEM_cert_to_DER_cert(found)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError) as error:
            raise ValueError(f"certificate {number} of the bundle cannot be read: {error}") from error
        yield der

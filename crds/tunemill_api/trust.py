"""Additional trusted CA certificates, for example of a private S3 server, Hub, proxy or trace collector."""

import os
import re
import ssl
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import certifi

VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Environment variables of OpenSSL, httpx and Rust, of requests, and of boto3. Each names one file with all trusted
certificates."""
_PEM: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


# Cached: it parses about 150 public certificates, and the operator calls it every ten seconds.
@lru_cache(maxsize=1)
def without_public_certificates(text: str) -> str:
    """Return the certificates of a bundle that are not public CA certificates, as PEM.

    Bundles of operating systems contain the public ones, too.

    Raises:
        ValueError: the text contains no certificate, or one that cannot be parsed.
    """
    found = list(_certificates(text))
    if not found:
        raise ValueError("expected certificates, each between BEGIN CERTIFICATE and END CERTIFICATE, found none")
    public = set(_certificates(Path(certifi.where()).read_text(encoding="utf-8")))
    return "".join(ssl.DER_cert_to_PEM_cert(one) for one in dict.fromkeys(found) if one not in public)


def trust(bundle: Path, folder: Path) -> None:
    """Make all libraries of this process trust a bundle, in addition to the public CA certificates.

    Call it before any connection is opened.

    Args:
        bundle: file with PEM certificates.
        folder: directory to which a file with all trusted certificates is written.

    Raises:
        ValueError: the bundle contains no certificate, or one that cannot be parsed.
        OSError: the bundle cannot be read, or the folder cannot be written to.
    """
    system = ssl.get_default_verify_paths().cafile
    texts = [Path(file).read_text(encoding="utf-8") for file in (certifi.where(), system) if file]
    trusted = folder / "authorities.pem"
    trusted.write_text(
        "".join([*texts, without_public_certificates(bundle.read_text(encoding="utf-8"))]), encoding="utf-8"
    )
    os.environ.update(dict.fromkeys(VARIABLES, str(trusted)))


def _certificates(text: str) -> Iterator[bytes]:
    """Yield each certificate in DER."""
    for number, found in enumerate(_PEM.findall(text), start=1):
        try:
            der = ssl.PEM_cert_to_DER_cert(found)
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError) as error:
            raise ValueError(f"certificate {number} of the bundle cannot be read: {error}") from error
        yield der

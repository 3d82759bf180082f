"""The CA: certificates as Fulcio issues them, with the promise of a certificate transparency log in each."""

import hashlib
import struct
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

LIFE = timedelta(minutes=10)
_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_ISSUER_V2 = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_TIMESTAMPS = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_OCTET_STRING, _UTF8_STRING = 0x04, 0x0C


class CertificateAuthority:
    """A root certificate, and the log that has seen what it signs."""

    def __init__(self) -> None:
        self._key, self._log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self._name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "tunemill tests"),
                x509.NameAttribute(NameOID.COMMON_NAME, "fulcio"),
            ]
        )
        now = datetime.now(UTC)
        self.root = (
            self._builder(self._name, self._key.public_key(), now - timedelta(hours=1), now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def log_key(self) -> bytes:
        """The public key of the log, in DER."""
        return public_der(self._log_key)

    def certificate(self, key: ec.EllipticCurvePublicKey, identity: str, issuer: str) -> x509.Certificate:
        """Return a certificate for a key and the identity in a token of the issuer."""
        now = datetime.now(UTC)
        builder = (
            self._builder(x509.Name([]), key, now - timedelta(seconds=5), now + LIFE)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER_V2, der(_UTF8_STRING, issuer.encode())), critical=False)
        )
        # The log signs what the certificate has except for the log's own promise (RFC 6962, section 3.2).
        unlogged = builder.sign(self._key, hashes.SHA256()).tbs_certificate_bytes
        promise = x509.UnrecognizedExtension(_TIMESTAMPS, der(_OCTET_STRING, self._promise(unlogged, now)))
        return builder.add_extension(promise, critical=False).sign(self._key, hashes.SHA256())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
        )

    def _promise(self, unlogged: bytes, now: datetime) -> bytes:
        """Return a list with one signed certificate timestamp (RFC 6962, section 3.3)."""
        millis = int(now.timestamp() * 1000)
        issuer = hashlib.sha256(public_der(self._key)).digest()
        entry = issuer + len(unlogged).to_bytes(3) + unlogged
        signed = struct.pack("!BBQH", 0, 0, millis, 1) + entry + b"\0\0"
        signature = self._log_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        head = b"\0" + hashlib.sha256(self.log_key).digest() + struct.pack("!QH", millis, 0)
        timestamp = head + b"\x04\x03" + _with_length(signature)  # SHA-256 and ECDSA
        return _with_length(_with_length(timestamp))


def public_der(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public half of a key, in DER."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.DER, form)


def der(tag: int, value: bytes) -> bytes:
    """Return a value in DER."""
    size = len(value)
    length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2)
    return bytes([tag]) + length + value


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _with_length(value: bytes) -> bytes:
    return len(value).to_bytes(2) + value

"""DSSE envelopes: a document with its signatures.

The format is DSSE v1 (https://github.com/secure-systems-lab/dsse), as in-toto and SLSA use it. Keys are ECDSA on the
curve P-256 with SHA-256, or Ed25519, as PEM. A key's id is the sha256 of its public half in DER (SubjectPublicKeyInfo).
"""

import base64
import binascii
import hashlib
from typing import Annotated, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

PAYLOAD_TYPE = "application/vnd.in-toto+json"
ACCEPTED = "ECDSA P-256 or Ed25519, as PEM without a passphrase"

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class KeyFormatError(ValueError):
    """A PEM text is not a usable key. The message has the cause and no part of the key."""


class Signature(BaseModel):
    """One signature of an envelope."""

    model_config = ConfigDict(frozen=True)

    keyid: str = ""
    """The id of the key; a hint that is not signed."""
    sig: str
    """The signature in base64."""


class Envelope(BaseModel):
    """A signed document."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)

    payload_type: str
    """The media type of the payload."""
    payload: str
    """The document's bytes in base64."""
    signatures: Annotated[list[Signature], Field(min_length=1, max_length=100)]
    """At least one."""

    @classmethod
    def read(cls, document: bytes) -> Self | None:
        """Parse an envelope; None if the document is not one."""
        try:
            return cls.model_validate_json(document)
        except ValidationError:
            return None

    def to_bytes(self) -> bytes:
        """Return the envelope as JSON."""
        return self.model_dump_json(by_alias=True, indent=2).encode() + b"\n"

    def document(self) -> bytes:
        """Return the bytes that are signed.

        Raises:
            ValueError: when the payload is not base64.
        """
        return base64.b64decode(self.payload, validate=True)


class VerificationKey:
    """The public half of a key."""

    def __init__(self, key: _PublicKey) -> None:
        self._key = key

    @classmethod
    def read(cls, pem: bytes) -> Self:
        """Read a PEM file (`BEGIN PUBLIC KEY`).

        Raises:
            KeyFormatError: when it is not a public key of an accepted kind.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyFormatError(f"expected a public key ({ACCEPTED}), found none") from error
        if isinstance(key, ed25519.Ed25519PublicKey) or (
            isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        ):
            return cls(key)
        raise KeyFormatError(f"expected a public key ({ACCEPTED}), found one of another kind")

    @property
    def key_id(self) -> str:
        """The sha256 of the key, hexadecimal."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return hashlib.sha256(self._key.public_bytes(serialization.Encoding.DER, form)).hexdigest()

    def has_signed(self, envelope: Envelope) -> bool:
        """Return whether one of the envelope's signatures is by this key. The unsigned `keyid` is ignored."""
        try:
            signed = _signed_bytes(envelope.payload_type, envelope.document())
        except ValueError:
            return False
        return any(self._matches(signature, signed) for signature in envelope.signatures)

    def _matches(self, signature: Signature, signed: bytes) -> bool:
        try:
            value = base64.b64decode(signature.sig, validate=True)
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(value, signed)
            else:
                self._key.verify(value, signed, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, binascii.Error):
            return False
        return True


class SigningKey:
    """A private key. Neither its repr nor an error contains any part of it."""

    def __init__(self, key: _PrivateKey) -> None:
        self._key = key
        self.public = VerificationKey(key.public_key())

    @classmethod
    def read(cls, pem: bytes) -> Self:
        """Read a PEM file (`BEGIN PRIVATE KEY` or `BEGIN EC PRIVATE KEY`).

        Raises:
            KeyFormatError: when it is not a private key of an accepted kind.
        """
        if b"ENCRYPTED" in pem:
            # This includes cosign's format, `ENCRYPTED SIGSTORE PRIVATE KEY`. The Secret protects the key instead.
            raise KeyFormatError(f"expected a private key ({ACCEPTED}), found an encrypted one")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Without the cause: its message may quote the key.
            raise KeyFormatError(f"expected a private key ({ACCEPTED}), found none") from None
        if isinstance(key, ed25519.Ed25519PrivateKey) or (
            isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
        ):
            return cls(key)
        raise KeyFormatError(f"expected a private key ({ACCEPTED}), found one of another kind")

    @property
    def name(self) -> str:
        """The key's id, for messages."""
        return self.public.key_id

    def sign(self, document: bytes) -> Envelope:
        """Return the document in an envelope; the same document gives the same bytes."""
        signed = _signed_bytes(PAYLOAD_TYPE, document)
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            value = self._key.sign(signed)
        else:
            value = self._key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        signature = Signature(keyid=self.public.key_id, sig=base64.b64encode(value).decode())
        return Envelope(payload_type=PAYLOAD_TYPE, payload=base64.b64encode(document).decode(), signatures=[signature])


def _signed_bytes(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding of DSSE v1."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)

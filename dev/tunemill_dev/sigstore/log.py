"""The transparency log: entries of the kind `dsse` as Rekor v1 takes them, with proofs that the log has them."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tunemill_trainer.release.signing import Envelope, VerificationKey

from tunemill_dev.sigstore.authority import public_der

_ORIGIN = "rekor.test - 1"
Json = dict[str, Any]


class TransparencyLog:
    """A Merkle tree (RFC 6962, section 2.1) in memory, and the key that signs its head."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: list[bytes] = []

    @property
    def public_key(self) -> bytes:
        """The public key, in DER."""
        return public_der(self._key)

    @property
    def id(self) -> bytes:
        """The log's id."""
        return hashlib.sha256(self.public_key).digest()

    def add(self, proposed: Json) -> Json:
        """Add an entry and return it with its proofs.

        Raises:
            ValueError: the envelope is not signed with the key of the certificate.
        """
        content = proposed["spec"]["proposedContent"]
        envelope, (verifier,) = Envelope.model_validate_json(content["envelope"]), content["verifiers"]
        key = x509.load_pem_x509_certificate(base64.b64decode(verifier)).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not VerificationKey(key).has_signed(envelope):
            raise ValueError("the envelope is not signed with the key of the certificate")
        spec = {
            "envelopeHash": _digest(content["envelope"].encode()),
            "payloadHash": _digest(envelope.document()),
            "signatures": [{"signature": item.sig, "verifier": verifier} for item in envelope.signatures],
        }
        body = _canonical({"apiVersion": "0.0.1", "kind": "dsse", "spec": spec})
        self._leaves.append(_leaf(body))
        return self._entry(body, len(self._leaves) - 1, int(datetime.now(UTC).timestamp()))

    def _entry(self, body: bytes, index: int, seconds: int) -> Json:
        entry = {
            "body": base64.b64encode(body).decode(),
            "integratedTime": seconds,
            "logID": self.id.hex(),
            "logIndex": index,
        }
        root = _root(self._leaves)
        proof = {
            "checkpoint": self._checkpoint(root),
            "hashes": [item.hex() for item in _proof(index, self._leaves)],
            "logIndex": index,
            "rootHash": root.hex(),
            "treeSize": len(self._leaves),
        }
        promise = base64.b64encode(self._signature(_canonical(entry))).decode()
        return {
            self._leaves[index].hex(): {
                **entry,
                "verification": {"inclusionProof": proof, "signedEntryTimestamp": promise},
            }
        }

    def _checkpoint(self, root: bytes) -> str:
        note = f"{_ORIGIN}\n{len(self._leaves)}\n{base64.b64encode(root).decode()}\n"
        signature = base64.b64encode(self.id[:4] + self._signature(note.encode())).decode()
        return f"{note}\n\u2014 {_ORIGIN.partition(' ')[0]} {signature}\n"

    def _signature(self, text: bytes) -> bytes:
        return self._key.sign(text, ec.ECDSA(hashes.SHA256()))


def _canonical(value: Json) -> bytes:
    """Return JSON in the form of RFC 8785, for texts in ASCII and integers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(text: bytes) -> Json:
    return {"algorithm": "sha256", "value": hashlib.sha256(text).hexdigest()}


def _leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\0" + body).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _split(count: int) -> int:
    """Return the largest power of two below the count."""
    return 1 << (count - 1).bit_length() - 1


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = _split(len(leaves))
    return _node(_root(leaves[:half]), _root(leaves[half:]))


def _proof(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the inclusion proof of a leaf: the hashes of the sibling nodes on its path to the root."""
    if len(leaves) == 1:
        return []
    half = _split(len(leaves))
    if index < half:
        return [*_proof(index, leaves[:half]), _root(leaves[half:])]
    return [*_proof(index - half, leaves[half:]), _root(leaves[:half])]

"""Builders for tests of provenance: keys, and small releases with their statement."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from trainer.release.test_card import facts
from tunemill_trainer.release.card import ReleaseFacts
from tunemill_trainer.release.provenance import Signer, Sources, document, statement
from tunemill_trainer.release.signing import SigningKey

NOON = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SOURCES = Sources(started=NOON, keys={"train": "0123456789abcdef"}, base_files={"config.json": "cd" * 32})


def private_pem(key: object, password: bytes | None = None) -> bytes:
    """Return a private key as `openssl genpkey` writes it."""
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, form, protection)  # type: ignore[attr-defined]
    return pem


def public_pem(key: object) -> bytes:
    """Return the public half as `openssl pkey -pubout` writes it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key()  # type: ignore[attr-defined]
    pem: bytes = public.public_bytes(serialization.Encoding.PEM, form)
    return pem


def a_key(number: int = 1) -> ec.EllipticCurvePrivateKey:
    """Return an ECDSA key; the same number is the same key."""
    return ec.derive_private_key(number, ec.SECP256R1())


def an_ed25519_key() -> ed25519.Ed25519PrivateKey:
    """Return an Ed25519 key."""
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def signing_key(number: int = 1) -> SigningKey:
    """Return what signs with `a_key`."""
    return SigningKey.read(private_pem(a_key(number)))


def a_release(folder: Path, signer: Signer | None = None, about: ReleaseFacts | None = None) -> Path:
    """Write a release with its provenance.json, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "README.md": "---\nlibrary_name: peft\n---\n# Model",
        "adapter_model.safetensors": "weights",
        "tunemill.json": '{"files": ["README.md", "adapter_model.safetensors", "provenance.json", "tunemill.json"]}',
    }.items():
        (folder / name).write_text(text)
    document(statement(folder, about or facts(), SOURCES, NOON), signer, None).write(folder)
    return folder

"""DSSE envelopes, and accepted keys."""

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from trainer.release.signed_releases import a_key, an_ed25519_key, private_pem, public_pem
from tunemill_trainer.release.signing import Envelope, KeyFormatError, SigningKey, VerificationKey

DOCUMENT = b'{"_type": "https://in-toto.io/Statement/v1"}'


def altered(envelope: Envelope, **fields: object) -> Envelope:
    """Return an envelope with other fields, parsed from its bytes."""
    changed = Envelope.read(json.dumps(json.loads(envelope.to_bytes()) | fields).encode())
    assert changed is not None
    return changed


@pytest.mark.parametrize("key", [a_key(), an_ed25519_key()], ids=["ECDSA P-256", "Ed25519"])
def test_a_signature_is_verified_by_the_public_key(key):
    """For both kinds of keys. Another document, type or key does not match."""
    envelope = SigningKey.read(private_pem(key)).sign(DOCUMENT)
    public = VerificationKey.read(public_pem(key))
    assert Envelope.read(envelope.to_bytes()) == envelope
    assert envelope.document() == DOCUMENT
    assert envelope.signatures[0].keyid == public.key_id
    assert public.has_signed(envelope)
    assert not public.has_signed(altered(envelope, payload=base64.b64encode(DOCUMENT + b" ").decode()))
    assert not public.has_signed(altered(envelope, payloadType="application/json"))
    assert not VerificationKey.read(public_pem(a_key(2))).has_signed(envelope)


@pytest.mark.parametrize("key", [a_key(), an_ed25519_key()], ids=["ECDSA P-256", "Ed25519"])
def test_the_same_document_gives_the_same_envelope(key):
    """A random signature would give a new commit each time."""
    pem = private_pem(key)
    assert SigningKey.read(pem).sign(DOCUMENT) == SigningKey.read(pem).sign(DOCUMENT)


def test_an_envelope_follows_dsse():
    """The signed bytes are the pre-authentication encoding of the specification's example."""
    envelope = SigningKey.read(private_pem(an_ed25519_key())).sign(b"hello")
    signed = b"DSSEv1 28 application/vnd.in-toto+json 5 hello"
    an_ed25519_key().public_key().verify(base64.b64decode(envelope.signatures[0].sig), signed)
    assert json.loads(envelope.to_bytes())["payloadType"] == "application/vnd.in-toto+json"


def test_the_key_id_of_a_signature_is_not_trusted():
    """A forged signature can have any id."""
    envelope = SigningKey.read(private_pem(a_key(2))).sign(DOCUMENT)
    key = VerificationKey.read(public_pem(a_key(1)))
    forged = altered(envelope, signatures=[{"keyid": key.key_id, "sig": envelope.signatures[0].sig}])
    assert not key.has_signed(forged)


@pytest.mark.parametrize("sig", ["", "no base64!", "AAAA"])
def test_an_invalid_signature_does_not_match(sig):
    """And raises no exception."""
    envelope = SigningKey.read(private_pem(a_key())).sign(DOCUMENT)
    assert not VerificationKey.read(public_pem(a_key())).has_signed(altered(envelope, signatures=[{"sig": sig}]))
    unread = altered(envelope, payload="no base64!")
    assert not VerificationKey.read(public_pem(a_key())).has_signed(unread)


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"payloadType": "x", "payload": "", "signatures": []}'])
def test_other_documents_are_not_envelopes(document):
    """Nor is an envelope without a signature, which must not be mistaken for a signed one."""
    assert Envelope.read(document) is None


@pytest.mark.parametrize(
    ("pem", "words"),
    [
        (b"hello", "found none"),
        (public_pem(a_key()), "found none"),
        (private_pem(a_key(), b"passphrase"), "found an encrypted one"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA", "found an encrypted one"),
        (private_pem(rsa.generate_private_key(65537, 2048)), "found one of another kind"),
        (private_pem(ec.derive_private_key(1, ec.SECP384R1())), "found one of another kind"),
    ],
    ids=["text", "public", "passphrase", "cosign", "RSA", "P-384"],
)
def test_an_unusable_private_key_is_refused_without_showing_it(pem, words):
    """The message, which is shown in status, has the accepted kinds."""
    with pytest.raises(KeyFormatError, match=f"ECDSA P-256 or Ed25519.*{words}") as caught:
        SigningKey.read(pem)
    assert caught.value.__cause__ is None
    assert not any(line in str(caught.value) for line in pem.decode().splitlines() if len(line) > 4)


@pytest.mark.parametrize("pem", [b"hello", private_pem(a_key()), public_pem(ec.derive_private_key(1, ec.SECP384R1()))])
def test_an_unusable_public_key_is_refused(pem):
    """A private key instead of the public one, for example."""
    with pytest.raises(KeyFormatError, match="expected a public key"):
        VerificationKey.read(pem)

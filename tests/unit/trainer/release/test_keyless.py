"""Signatures without a key, by a Sigstore instance of the test, whose answers the real client verifies."""

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from random import Random

import pytest
from property.mutations import json_of, mutated
from sigstore.models import ClientTrustConfig
from tunemill_dev.sigstore.local import FULCIO, ISSUER, REKOR, LocalSigstore, local_sigstore
from tunemill_trainer.release import keyless
from tunemill_trainer.release.keyless import (
    Identity,
    IdentityTokenError,
    KeylessSigner,
    NotVerifiedError,
    SigstoreRefusedError,
    SigstoreUnreachableError,
    trust_config,
    verified,
)

WHO = Identity("https://kubernetes.io/namespaces/team-a/serviceaccounts/default", ISSUER)
DOCUMENT = json.dumps(
    {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adapter_model.safetensors", "digest": {"sha256": "ab" * 32}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {"about": "acme/support-tools"},
    }
).encode()


@pytest.fixture(scope="module")
def sigstore() -> Iterator[LocalSigstore]:
    """An instance for all tests."""
    with local_sigstore() as instance:
        yield instance


@pytest.fixture
def failing(sigstore: LocalSigstore) -> Iterator[dict[str, int]]:
    """The HTTP statuses with which paths of the instance answer in this test."""
    yield sigstore.failures
    sigstore.failures.clear()


@pytest.fixture(scope="module")
def trust(sigstore: LocalSigstore) -> ClientTrustConfig:
    """How to verify what the instance has certified."""
    return trust_config(sigstore.trust_config())


@pytest.fixture(scope="module")
def signer(sigstore: LocalSigstore) -> KeylessSigner:
    """The service account default of team-a."""
    return KeylessSigner(sigstore.token, sigstore.trust_config())


@pytest.fixture(scope="module")
def bundle(signer: KeylessSigner) -> bytes:
    """The third entry of a log: its proof has a hash from each side of the tree."""
    return [signer.sign(DOCUMENT) for _ in range(3)][-1]


def test_a_service_account_signs(signer: KeylessSigner, bundle: bytes, trust: ClientTrustConfig):
    """The bundle has the same bytes in it, and names who signed."""
    assert signer.identity == WHO
    assert verified(bundle, WHO, trust) == DOCUMENT
    assert signer.has_signed(bundle, DOCUMENT)
    assert not signer.has_signed(bundle, DOCUMENT + b" ")
    assert not signer.has_signed(b"", DOCUMENT)


def test_the_log_has_the_identity_but_not_the_statement(sigstore: LocalSigstore, signer: KeylessSigner):
    """What everyone can read in a public log: the certificate, and digests."""
    signer.sign(DOCUMENT)
    (entry,) = sigstore.entries[-1].values()
    body = json.loads(base64.b64decode(entry["body"]))
    assert body["spec"].keys() == {"envelopeHash", "payloadHash", "signatures"}
    assert b"acme" not in base64.b64decode(entry["body"])


@pytest.mark.parametrize(
    "other",
    [
        Identity("https://kubernetes.io/namespaces/team-b/serviceaccounts/default", ISSUER),
        Identity("https://kubernetes.io/namespaces/team-a/serviceaccounts/other", ISSUER),
        Identity(WHO.name, f"{ISSUER}-2"),
        Identity(WHO.name.removesuffix("t"), ISSUER),
    ],
)
def test_another_identity_is_not_verified(bundle: bytes, trust: ClientTrustConfig, other: Identity):
    """Namespace, service account and issuer have to be the same."""
    with pytest.raises(NotVerifiedError):
        verified(bundle, other, trust)


def test_another_instance_of_sigstore_is_not_trusted(bundle: bytes):
    """Everyone can run a CA that certifies any name."""
    with local_sigstore() as other, pytest.raises(NotVerifiedError, match="certificate"):
        verified(bundle, WHO, trust_config(other.trust_config()))


def test_no_part_of_a_bundle_can_be_changed(bundle: bytes, trust: ClientTrustConfig):
    """Document, signature, certificate, and each part of the log's proof."""
    whole = json.loads(bundle)
    (entry,) = whole["verificationMaterial"]["tlogEntries"]
    proof = entry["inclusionProof"]
    envelope = whole["dsseEnvelope"]
    for parent, name in (
        (envelope, "payload"),
        (envelope["signatures"][0], "sig"),
        (whole["verificationMaterial"]["certificate"], "rawBytes"),
        (entry, "canonicalizedBody"),
        (entry["inclusionPromise"], "signedEntryTimestamp"),
        (proof, "rootHash"),
    ):
        value = bytearray(base64.b64decode(parent[name]))
        value[len(value) // 2] ^= 1
        _refused(whole, parent, name, base64.b64encode(value).decode(), trust)
    _refused(whole, entry, "integratedTime", str(int(entry["integratedTime"]) + 1), trust)
    _refused(whole, entry, "logIndex", "7", trust)
    _refused(whole, proof, "hashes", proof["hashes"][::-1] + proof["hashes"], trust)
    _refused(whole, proof["checkpoint"], "envelope", proof["checkpoint"]["envelope"].replace("\n3\n", "\n4\n"), trust)
    assert verified(json.dumps(whole).encode(), WHO, trust) == DOCUMENT


def _refused(whole: dict, parent: dict, name: str, value: object, trust: ClientTrustConfig) -> None:
    before, parent[name] = parent[name], value
    with pytest.raises(NotVerifiedError):
        verified(json.dumps(whole).encode(), WHO, trust)
    parent[name] = before


def test_a_bundle_of_any_form_is_verified_or_rejected(bundle: bytes, trust: ClientTrustConfig):
    """Nothing else is raised, and no other document is returned."""
    whole = json.loads(bundle)
    for seed in range(150):
        random = Random(seed)
        text = json_of(mutated(random, whole, random.choice([1, 2]))).encode(errors="surrogatepass")
        with contextlib.suppress(NotVerifiedError):
            assert verified(text, WHO, trust) == DOCUMENT


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1_000_000_000},
        {"aud": ["kubernetes.default.svc"]},
        {"sub": "repo:acme/tools"},
        {"sub": "system:serviceaccount:team-a"},
    ],
)
def test_a_token_of_another_kind_is_not_sent(sigstore: LocalSigstore, claims: dict[str, object]):
    """An expired one, or one for another service or subject. No message shows it."""
    token = sigstore.token(**claims)  # type: ignore[arg-type]
    with pytest.raises(IdentityTokenError) as error:
        KeylessSigner(lambda: token, sigstore.trust_config())
    assert not [part for part in token.split(".") if part in str(error.value)]


def test_the_token_is_read_again_for_each_signature(sigstore: LocalSigstore):
    """The kubelet renews it while a large model is pushed."""
    tokens = [sigstore.token(), sigstore.token(exp=1_000_000_000)]
    signer = KeylessSigner(lambda: tokens.pop(0), sigstore.trust_config())
    with pytest.raises(IdentityTokenError, match="expired"):
        signer.sign(DOCUMENT)


def test_a_token_rejected_by_sigstore_is_a_refusal(sigstore: LocalSigstore):
    """With the message of the CA. This is also the result for an unknown issuer."""
    with local_sigstore() as other:
        signer = KeylessSigner(other.token, sigstore.trust_config())
    with pytest.raises(SigstoreRefusedError, match=r"signingCert returned HTTP 401: .*Signature verification failed"):
        signer.sign(DOCUMENT)


@pytest.mark.parametrize("path", [FULCIO, REKOR])
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, SigstoreRefusedError),
        (403, SigstoreRefusedError),
        (429, SigstoreUnreachableError),
        (503, SigstoreUnreachableError),
        (200, SigstoreUnreachableError),  # an answer without a certificate, or without an entry
    ],
)
def test_a_failing_service_is_distinguished_from_a_refusal(
    signer: KeylessSigner, failing: dict[str, int], path: str, status: int, expected: type[Exception]
):
    """The first is retried, the second needs a change by a user."""
    failing[path] = status
    with pytest.raises(expected, match=rf"{path} returned HTTP {status}" if status != 200 else "no usable answer"):
        signer.sign(DOCUMENT)


def test_a_service_without_a_response_times_out(
    signer: KeylessSigner, failing: dict[str, int], monkeypatch: pytest.MonkeyPatch
):
    """Its client would wait forever."""
    failing[FULCIO] = 0
    monkeypatch.setattr(keyless, "SECONDS", 0.2)
    with pytest.raises(SigstoreUnreachableError, match="did not answer"):
        signer.sign(DOCUMENT)


def test_an_unreachable_service_is_reported(sigstore: LocalSigstore):
    """No process listens at the URL."""
    config = sigstore.trust_config().replace(sigstore.url, "http://127.0.0.1:9")
    with pytest.raises(SigstoreUnreachableError, match="no usable answer"):
        KeylessSigner(sigstore.token, config).sign(DOCUMENT)


def test_an_instance_with_other_keys_than_its_configuration_is_refused(sigstore: LocalSigstore):
    """Its signatures could not be verified."""
    with local_sigstore() as other:
        config = json.loads(other.trust_config())
    config["signingConfig"] = json.loads(sigstore.trust_config())["signingConfig"]
    with pytest.raises(SigstoreRefusedError, match="does not fit its trust configuration"):
        KeylessSigner(sigstore.token, json.dumps(config)).sign(DOCUMENT)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"trustedRoot": {}, "signingConfig": {}}'])
def test_an_invalid_trust_configuration_is_refused(text: str):
    """With the first error."""
    with pytest.raises(SigstoreRefusedError, match="trust configuration"):
        trust_config(text)


def test_sigstore_is_imported_only_if_needed():
    """It would delay the start of each stage by a second."""
    code = "import sys, tunemill_trainer.release.verification; assert 'sigstore' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""`tunemill verify` with a Hub: a valid release, and every kind of change to it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from trainer.commands.json_shapes import undocumented, unprinted
from trainer.release.signed_releases import a_key, a_release, public_pem, signing_key
from trainer.release.test_card import facts
from tunemill_api.failures import ExitCode
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.faults import Fault
from tunemill_dev.hub.local import LocalHub, local_hub
from tunemill_dev.sigstore.local import ISSUER, LocalSigstore, local_sigstore
from tunemill_trainer.__main__ import main
from tunemill_trainer.commands import verify
from tunemill_trainer.release.keyless import KeylessSigner
from tunemill_trainer.release.push import Repository

NAME = "acme/support-tools"
ACCOUNTS = Accounts.model_validate(
    {
        "users": {"alice": {"acme": "write"}},
        "tokens": [{"value": "alice-writes", "user": "alice", "role": "write"}],
    }
)


class Verifier:
    """A repository on a local Hub, and the command that checks it."""

    def __init__(self, hub: LocalHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.hub, self.folder = hub, folder
        self.api = HfApi(endpoint=hub.url, token="alice-writes")
        self._capsys = capsys

    def publish(self, *, signed: bool = True, name: str = NAME, branch: str = "main") -> str:
        """Push a release as the stage does, and return its commit."""
        repository = Repository(self.api, name, lambda _seconds: None)
        repository.create(private=True)
        release = a_release(self.folder / "release", signing_key() if signed else None)
        return repository.put(release, branch, "Publish")

    def publish_keyless(self, sigstore: LocalSigstore) -> None:
        """Push a release signed by a service account."""
        repository = Repository(self.api, NAME, lambda _seconds: None)
        repository.create(private=True)
        signer = KeylessSigner(sigstore.token, sigstore.trust_config())
        repository.put(a_release(self.folder / "release", signer), "main", "Publish")

    def put(self, path: str, content: bytes, name: str = NAME) -> None:
        """Change a file as a user with write access."""
        self.api.upload_file(path_or_fileobj=content, path_in_repo=path, repo_id=name)

    def statement(self) -> bytes:
        """Return provenance.json as published."""
        return (self.folder / "release" / "provenance.json").read_bytes()

    def key(self, number: int = 1) -> str:
        """Return a file with a public key."""
        path = self.folder / f"{number}.pem"
        path.write_bytes(public_pem(a_key(number)))
        return str(path)

    def verify(self, *options: str, name: str = NAME) -> tuple[int, str]:
        """Run the command; return its exit code and output."""
        self._capsys.readouterr()  # what publishing has printed is not the command's
        code = main(["verify", name, "--endpoint", self.hub.url, *options])
        said = self._capsys.readouterr()
        return code, said.out + said.err


@pytest.fixture
def verifier(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Verifier]:
    """An empty Hub, and a token with read access to everything."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "alice-writes")
    monkeypatch.setenv("TUNEMILL_IMAGE", f"registry.example.com/trainer:1@sha256:{'ef' * 32}")
    # The variable is read once, at the first import: a slow download would print a bar with control characters.
    disable_progress_bars()
    with local_hub(ACCOUNTS, data=tmp_path / "hub") as hub:
        yield Verifier(hub, tmp_path, capsys)
    enable_progress_bars()


def test_a_release_is_verified_with_its_provenance(verifier: Verifier):
    """Base model, data, image, run and the key id, with exit code 0."""
    commit = verifier.publish()
    code, said = verifier.verify("--key", verifier.key())
    assert code == ExitCode.DONE, said
    assert f"{NAME} at {commit}: verified" in said
    assert f"valid, of the key {signing_key().public.key_id}" in said
    base = facts().base
    for words in (base.revision, "ab" * 32, "ef" * 32, "7f3a9c", "https://tunemill.dev/builders/trainer/v1"):
        assert words in said


def test_an_unsigned_release_is_verified_with_a_warning_but_not_with_a_key(verifier: Verifier):
    """If a key is given, a missing signature is an error."""
    verifier.publish(signed=False)
    code, said = verifier.verify()
    assert code == ExitCode.DONE
    assert "signature   NONE: anybody who can write to the repository could have written the statement" in said
    code, said = verifier.verify("--key", verifier.key())
    assert code == ExitCode.DATA_WRONG
    assert "NOT verified" in said
    assert "provenance.json is not signed" in said


def test_an_unchecked_signature_is_not_reported_as_valid(verifier: Verifier):
    """Without a key, the key id is only a claim."""
    verifier.publish()
    code, said = verifier.verify()
    assert code == ExitCode.DONE
    assert "NOT CHECKED" in said
    assert "--key" in said


def test_json_output_has_the_documented_fields(verifier: Verifier):
    """With a key, without one, and for an invalid statement."""
    commit = verifier.publish()
    for options, state in ((["--key", verifier.key()], "valid"), ([], "not checked")):
        code, said = verifier.verify("--json", *options)
        printed = json.loads(said)
        assert (code, printed["verified"], printed["commit"]) == (ExitCode.DONE, True, commit)
        assert printed["signature"] == {"state": state, "keys": [signing_key().public.key_id], "identity": None}
        assert undocumented(verify.COMMAND, said) == []
        assert unprinted(verify.COMMAND, said) == {"problems[]"}
    code, said = verifier.verify("--json", "--key", verifier.key(2))
    printed = json.loads(said)
    assert (code, printed["statement"], len(printed["problems"])) == (ExitCode.DATA_WRONG, None, 1)
    assert undocumented(verify.COMMAND, said) == []


def test_a_keyless_signature_is_verified_by_identity(verifier: Verifier, tmp_path: Path):
    """Against the trust configuration of the instance. A changed file, statement or bundle is detected."""
    with local_sigstore() as sigstore:
        verifier.publish_keyless(sigstore)
        trust = tmp_path / "trust.json"
        trust.write_text(sigstore.trust_config())
    account = "https://kubernetes.io/namespaces/team-a/serviceaccounts/default"
    trusted = ("--certificate-oidc-issuer", ISSUER, "--trust-config", str(trust))
    who = ("--certificate-identity", account, *trusted)
    code, said = verifier.verify(*who)
    assert code == ExitCode.DONE, said
    assert f"signature   valid, of {account}, issuer {ISSUER}" in said
    code, said = verifier.verify("--json", *who)
    assert json.loads(said)["signature"] == {"state": "valid", "keys": [], "identity": account}
    assert undocumented(verify.COMMAND, said) == []
    code, said = verifier.verify()
    assert code == ExitCode.DONE
    assert "NOT CHECKED: it is one without a key; pass --certificate-identity" in said
    code, said = verifier.verify("--certificate-identity", account.replace("team-a", "team-b"), *trusted)
    assert code == ExitCode.DATA_WRONG
    assert "is no valid signature of https://kubernetes.io/namespaces/team-b" in said
    assert "training data" not in said, "unverified claims are not printed as facts"

    verifier.put("README.md", b"changed")
    code, said = verifier.verify(*who)
    assert code == ExitCode.DATA_WRONG
    assert "README.md has sha256" in said
    verifier.put("provenance.json", verifier.statement().replace(b"7f3a9c", b"000000"))
    code, said = verifier.verify(*who)
    assert code == ExitCode.DATA_WRONG
    assert "provenance.json.sigstore.json is the signature of another provenance.json" in said
    verifier.put("provenance.json.sigstore.json", b"{}")
    assert "provenance.json.sigstore.json is no valid signature" in verifier.verify(*who)[1]
    verifier.api.delete_file("provenance.json.sigstore.json", NAME)
    code, said = verifier.verify(*who)
    assert code == ExitCode.DATA_WRONG
    assert "provenance.json is not signed by an identity: there is no provenance.json.sigstore.json" in said


def test_identity_options_must_be_given_together(verifier: Verifier, tmp_path: Path):
    """Nothing is checked with half of them."""
    name, issuer = ("--certificate-identity", "https://a"), ("--certificate-oidc-issuer", "https://b")
    bad = tmp_path / "trust.json"
    bad.write_text("{}")
    for options, code, words in (
        (name, ExitCode.SPEC_WRONG, "are needed together"),
        (issuer, ExitCode.SPEC_WRONG, "are needed together"),
        ((*name, *issuer, "--key", verifier.key()), ExitCode.SPEC_WRONG, "exclude each other"),
        (("--trust-config", str(bad)), ExitCode.SPEC_WRONG, "needs --certificate-identity"),
        ((*name, *issuer, "--trust-config", str(bad)), ExitCode.SPEC_WRONG, "trust configuration"),
        ((*name, *issuer, "--trust-config", "/nowhere"), ExitCode.INPUT_MISSING, "could not be read"),
    ):
        found, said = verifier.verify(*options)
        assert (found, words in said) == (code, True), said


def test_a_different_key_is_detected(verifier: Verifier):
    """The message names the expected key."""
    verifier.publish()
    code, said = verifier.verify("--key", verifier.key(2))
    assert code == ExitCode.DATA_WRONG
    assert f"not signed by {signing_key(2).public.key_id}" in said
    assert "training data" not in said, "unverified claims are not printed as facts"


@pytest.mark.parametrize("download", [[], ["--download"]], ids=["listed", "downloaded"])
@pytest.mark.parametrize("path", ["README.md", "adapter_model.safetensors", "tunemill.json"])
def test_a_changed_file_is_named(verifier: Verifier, path: str, download: list[str]):
    """Text and weights, with the actual and the stated digest."""
    verifier.publish()
    verifier.put(path, b"changed")
    code, said = verifier.verify("--key", verifier.key(), *download)
    assert code == ExitCode.DATA_WRONG
    assert f"{path} has sha256 {hashlib.sha256(b'changed').hexdigest()}, the statement has " in said


def test_the_published_commit_can_be_verified_after_later_commits(verifier: Verifier):
    """For example after an edit of the card on the branch, as the remedy says."""
    commit = verifier.publish()
    verifier.put("README.md", b"# Edited")
    assert verifier.verify("--key", verifier.key())[0] == ExitCode.DATA_WRONG
    assert verifier.verify("--key", verifier.key(), "--revision", commit)[0] == ExitCode.DONE


def test_an_added_or_removed_file_is_named(verifier: Verifier):
    """Code or a second tokenizer file would be loaded with the model."""
    verifier.publish()
    verifier.put("modeling.py", b"import os")
    verifier.api.delete_file("README.md", NAME)
    code, said = verifier.verify("--key", verifier.key())
    assert code == ExitCode.DATA_WRONG
    assert "modeling.py is in the repository but not in the statement" in said
    assert "README.md is in the statement but not in the repository" in said


def test_added_files_can_be_ignored_by_an_option(verifier: Verifier):
    """But not files of the release: an ignored one is missing."""
    verifier.publish()
    verifier.put("NOTES.md", b"Ask us.")
    assert verifier.verify("--ignore", "NOTES.*")[0] == ExitCode.DONE
    assert verifier.verify("--ignore", "NOTES.*", "--ignore", "*.safetensors")[0] == ExitCode.DATA_WRONG
    code, said = verifier.verify("--ignore", "*")
    assert code == ExitCode.INPUT_MISSING, said


def test_a_changed_statement_is_detected_by_its_signature(verifier: Verifier):
    """Weights and statement are changed together: the envelope no longer matches, and a plain statement is unsigned."""
    verifier.publish()
    verifier.put("README.md", b"changed")
    release = verifier.folder / "release"
    (release / "README.md").write_bytes(b"changed")
    unsigned = (a_release(verifier.folder / "other") / "provenance.json").read_bytes()
    envelope = json.loads(verifier.statement())
    forged = json.dumps(envelope | {"payload": envelope["payload"][:-8] + "AAAAAAA="}).encode()
    for statement in (unsigned, forged, (a_release(release, signing_key(2)) / "provenance.json").read_bytes()):
        verifier.put("provenance.json", statement)
        code, said = verifier.verify("--key", verifier.key())
        assert code == ExitCode.DATA_WRONG
        assert "provenance.json is not signed" in said


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"_type": "https://in-toto.io/Statement/v1"}']
)
def test_an_invalid_statement_is_reported(verifier: Verifier, content: bytes):
    """In one sentence without a traceback."""
    verifier.publish()
    verifier.put("provenance.json", content)
    code, said = verifier.verify()
    assert code == ExitCode.DATA_WRONG
    assert "provenance.json is not an in-toto statement" in said
    assert "Traceback" not in said


def test_line_feeds_in_a_statement_are_escaped(verifier: Verifier):
    """Its content is untrusted."""
    verifier.publish(signed=False)
    statement = json.loads(verifier.statement())
    statement["predicate"]["runDetails"]["builder"]["id"] = "x\nsignature   valid\x1b[2J"
    verifier.put("provenance.json", json.dumps(statement).encode())
    _, said = verifier.verify()
    assert "\nsignature   valid" not in said
    assert "\x1b" not in said


def test_a_repository_without_a_statement_cannot_be_verified(verifier: Verifier):
    """Of another tool or an older version; the exit code differs from that of a valid release."""
    Repository(verifier.api, NAME, lambda _seconds: None).create(private=True)
    verifier.put("model.safetensors", b"weights")
    code, said = verifier.verify()
    assert code == ExitCode.INPUT_MISSING
    assert "has no provenance.json" in said
    verifier.put("provenance.json", b" " * (5 << 20))
    assert verifier.verify()[0] == ExitCode.INPUT_MISSING


def test_a_release_copied_to_another_repository_needs_an_option(verifier: Verifier):
    """Signed files of an experiment are not accepted in a production repository."""
    verifier.publish(name="acme/production")
    code, said = verifier.verify("--key", verifier.key(), name="acme/production")
    assert code == ExitCode.DATA_WRONG
    assert f"the statement is about {NAME} and not about acme/production" in said
    options = ("--key", verifier.key(), "--published-as", NAME)
    assert verifier.verify(*options, name="acme/production")[0] == ExitCode.DONE


def test_a_draft_is_not_verified_on_another_branch(verifier: Verifier):
    """Moving main to a signed draft does not make it a release."""
    gates = tuple(replace_gate.model_copy(update={"passed": False}) for replace_gate in facts().gates)
    repository = Repository(verifier.api, NAME, lambda _seconds: None)
    repository.create(private=True)
    folder = a_release(verifier.folder / "draft", signing_key(), replace(facts(), gates=gates))
    for branch, expected in (("tunemill-draft-0123", ExitCode.DONE), ("main", ExitCode.DATA_WRONG)):
        repository.put(folder, branch, "Draft")
        code, said = verifier.verify("--key", verifier.key(), "--revision", branch)
        assert code == expected, said
    assert "it is a draft" in said


def test_weights_that_differ_from_the_listing_are_detected_by_a_download(verifier: Verifier):
    """The listing is only a claim of the Hub."""
    verifier.publish()
    blobs = verifier.folder / "hub" / "models" / "acme" / "support-tools" / "blobs"
    (blobs / hashlib.sha256(b"weights").hexdigest()).write_bytes(b"changed")
    assert verifier.verify()[0] == ExitCode.DONE
    code, said = verifier.verify("--download")
    assert code == ExitCode.DATA_WRONG
    assert "adapter_model.safetensors has sha256" in said


def test_missing_inputs_are_reported_with_a_remedy(verifier: Verifier, monkeypatch: pytest.MonkeyPatch):
    """A wrong name, revision or key file, a missing token, a Hub that fails."""
    verifier.publish()
    code, said = verifier.verify("--revision", "v9")
    assert (code, "correct --revision" in said) == (ExitCode.INPUT_MISSING, True)
    code, said = verifier.verify(name="acme/nothing")
    assert (code, "shows no repository acme/nothing" in said) == (ExitCode.INPUT_MISSING, True)
    code, said = verifier.verify(name="a/b/c")
    assert (code, "is no repository" in said) == (ExitCode.SPEC_WRONG, True)
    code, said = verifier.verify("--key", str(verifier.folder / "none.pem"))
    assert (code, "none.pem could not be read" in said) == (ExitCode.INPUT_MISSING, True)
    (verifier.folder / "wrong.pem").write_text("hello")
    code, said = verifier.verify("--key", str(verifier.folder / "wrong.pem"))
    assert (code, "expected a public key" in said) == (ExitCode.SPEC_WRONG, True)
    verifier.hub.fail(Fault(method="GET", path="/tree/", status=500, times=-1))
    code, said = verifier.verify()
    assert (code, "HTTP 500" in said) == (ExitCode.SERVICE_UNAVAILABLE, True)
    monkeypatch.delenv("HF_TOKEN")
    code, said = verifier.verify()
    assert (code, "set HF_TOKEN" in said) == (ExitCode.INPUT_MISSING, True)

"""The provenance statement of a release."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from api.builders import fields_of_spec
from trainer.release.signed_releases import NOON, SOURCES, a_release, signing_key
from trainer.release.test_card import ADAPTER, SECRETS, facts, model, outputs
from tunemill_api.evaluation import Suite
from tunemill_dev.sigstore.local import local_sigstore
from tunemill_trainer.release import provenance
from tunemill_trainer.release.card import ReleaseFacts
from tunemill_trainer.release.folder import assemble
from tunemill_trainer.release.keyless import KeylessSigner
from tunemill_trainer.release.provenance import Document
from tunemill_trainer.release.signing import Envelope

LATER = NOON.replace(hour=13)
PINNED = f"registry.internal.example/team-a/trainer:1.2@sha256:{'ef' * 32}"
LEFT_OUT = {
    "suspend": "says whether anything runs",
    "profile": "names a profile; what it gives is in the fields that it gives",
    "hub": "where things lie; it is in the base model's package URL",
    "baseModel.tokenSecretRef": "credentials",
    "dataset.uri": "where the data lies; its digest is a dependency",
    "dataset.credentialsSecretRef": "credentials",
    "dataset.endpoint": "where the data lies",
    "dataset.region": "where the data lies",
    "dataset.evaluation.uri": "where the data lies",
    "dataset.validation.uri": "where the data lies",
    "dataset.replay.uri": "where the data lies",
    "dataset.augmentation.irrelevanceAnswer": "a text of the user's",
    "tools": "names a ConfigMap",
    "tokenizer.chatTemplate": "names a ConfigMap; the template is a file of the release",
    "training.checkpoint": "changes no output",
    "publish.tokenSecretRef": "credentials",
    "publish.signing": "credentials",
    "publish.oci": "where an image lies; the image is named by its digest",
    "tracking": "where figures are logged to",
    "workspace": "where outputs lie",
    "compute": "where pods run",
    "podTemplates": "where pods run",
    "queue": "when pods run",
    "retry": "how often a stage is tried",
    "maxRuntime": "how long a run may take",
    "stallTimeout": "how long a stage may be silent",
    "maxGpuHours": "what a run may cost",
    "historyLimit": "what the status keeps",
    "retrain": "when to look at the data",
}
"""The fields of the spec that no statement shows, each with the reason."""


def made(folder: Path, **sources: Any) -> dict[str, Any]:
    """Return the statement of a release as JSON."""
    found = provenance.statement(a_release(folder), facts(), replace(SOURCES, **sources), NOON)
    value: dict[str, Any] = json.loads(found.to_bytes())
    return value


def test_a_statement_has_the_form_of_in_toto_and_slsa(tmp_path: Path):
    """Types, invocation, builder and times are in the fields of the specifications."""
    found = made(tmp_path)
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    definition, details = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert definition["buildType"] == "https://tunemill.dev/build-types/finetune/v1"
    assert details["builder"]["id"] == "https://tunemill.dev/builders/trainer/v1"
    assert details["metadata"] == {
        "invocationId": "7f3a9c",
        "startedOn": "2026-11-29T12:00:00Z",
        "finishedOn": "2026-11-29T12:00:00Z",
    }
    assert definition["internalParameters"] == {
        "name": "tools",
        "repository": "acme/support-tools",
        "draft": False,
        "keys": {"train": "0123456789abcdef"},
    }


def test_the_subject_is_every_file_except_the_statement(tmp_path: Path):
    """With the digests that sha256sum prints."""
    found = {entry["name"]: entry["digest"] for entry in made(tmp_path)["subject"]}
    assert found.keys() == {"README.md", "adapter_model.safetensors", "tunemill.json"}
    assert found["adapter_model.safetensors"] == {
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    }


def test_a_statement_names_base_model_data_and_images_by_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Commit and files of the base model, sha256 of the data, images of train and publish."""
    monkeypatch.setenv("TUNEMILL_IMAGE", "registry.internal.example:5000/trainer:2")
    found = made(tmp_path, train_image=PINNED)["predicate"]["buildDefinition"]["resolvedDependencies"]
    base = facts().base
    purl = f"pkg:huggingface/google/gemma-2-2b-it@{base.revision}"
    assert found == [
        {"name": "base model", "uri": purl, "digest": {"gitCommit": base.revision}},
        {"name": "base model: config.json", "uri": f"{purl}#config.json", "digest": {"sha256": "cd" * 32}},
        {"name": "training data", "digest": {"sha256": "ab" * 32}},
        {
            "name": "image of train",
            "uri": f"pkg:oci/trainer@sha256%3A{'ef' * 32}?tag=1.2",
            "digest": {"sha256": "ef" * 32},
        },
        {"name": "image of publish", "uri": "pkg:oci/trainer?tag=2", "digest": {}},
    ]


def with_suite(about: ReleaseFacts, **fields: str) -> ReleaseFacts:
    """Return the facts of a run with a suite."""
    suite = Suite.model_validate({"name": "own", "uri": "hf://acme/own", "judge": "Pattern", **fields})
    evaluation = about.run.spec.evaluation.model_copy(update={"suites": [suite]})
    spec = about.run.spec.model_copy(update={"evaluation": evaluation})
    return replace(about, run=about.run.model_copy(update={"spec": spec}))


def test_a_statement_names_the_adapter_to_start_from(tmp_path: Path):
    """Commit and files. A later run reads from it which adapter of the repository this one was trained from."""
    release = a_release(tmp_path)
    statement = provenance.statement(release, facts(adapter_from=ADAPTER), SOURCES, NOON)
    dependencies = statement.predicate.build_definition.resolved_dependencies
    found = {each.name: each for each in dependencies if each.name.startswith(provenance.START_ADAPTER)}
    purl = f"pkg:huggingface/acme/week-1@{ADAPTER.revision}"
    file = "adapter_model.safetensors"
    assert found == {
        provenance.START_ADAPTER: provenance.Resource(
            name=provenance.START_ADAPTER, uri=purl, digest={"gitCommit": ADAPTER.revision}
        ),
        f"{provenance.START_ADAPTER}: {file}": provenance.Resource(
            name=f"{provenance.START_ADAPTER}: {file}", uri=f"{purl}#{file}", digest={"sha256": "ad" * 32}
        ),
    }
    for document in (statement.to_bytes(), provenance.document(statement, signing_key()).statement):
        assert provenance.origin_of(document, ADAPTER.id) == provenance.Origin("ab" * 32, ADAPTER.revision)
        assert provenance.origin_of(document, "acme/other") is None
    assert provenance.origin_of(provenance.statement(release, facts(), SOURCES, NOON).to_bytes(), ADAPTER.id) is None
    assert provenance.origin_of(b"no JSON", ADAPTER.id) is None


def test_a_statement_has_no_private_locations_or_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The repository may be public: no bucket, endpoint, namespace, Secret, registry or data set."""
    monkeypatch.setenv("TUNEMILL_IMAGE", PINNED)
    for uri in ("s3://secret-bucket/calls.jsonl", "hf://team-a/secret-rows"):
        rows = {
            "uri": uri,
            "endpoint": "https://s3.internal.example",
            "evaluation": {"uri": uri},
            "validation": {"uri": uri},
            "replay": {"uri": uri},
        }
        about = with_suite(facts(dataset=rows), uri=uri, pattern="the-secret-bucket-of-s3://secret-bucket")
        text = provenance.statement(a_release(tmp_path), about, SOURCES, NOON).to_bytes().decode()
        assert not [secret for secret in (*SECRETS, "secret-rows", "internal.example") if secret in text]
        assert '"judge": "Pattern"' in text
    assert '"fraction": "0.1"' in text
    assert "suites" not in provenance.statement(a_release(tmp_path), facts(), SOURCES, NOON).to_bytes().decode()


def test_every_spec_field_is_in_the_statement_or_omitted_for_a_reason():
    """A new field needs a decision whether it may be public."""
    parts: dict[str, Any] = {
        "uri": "hf://acme/calls",
        "evaluation": {"splitBy": "Tools"},
        "augmentation": {},
        "validation": {},
        "replay": {"uri": "hf://acme/chat"},
    }
    spec = with_suite(facts(dataset=parts, training={"preference": {}}, adapter_from=ADAPTER))
    shown: list[str] = []

    def walk(value: dict[str, Any], path: str) -> None:
        for name, part in value.items():
            here = f"{path}.{name}".lstrip(".")
            walk(part, here) if isinstance(part, dict) else shown.append(here)

    walk(provenance.parameters(spec.run.spec), "")
    assert not set(shown) & set(LEFT_OUT)
    decided = {*shown, *LEFT_OUT}
    undecided = set(fields_of_spec(lambda path: path in decided)) - decided
    assert not undecided, f"add them to PARAMETERS, or to LEFT_OUT with the reason: {sorted(undecided)}"


def test_a_repeated_publication_reuses_the_statement(tmp_path: Path):
    """Only the times differ: a pod that died after its push does not cause a second commit, signed or not."""
    folder = a_release(tmp_path)
    first, again = (provenance.statement(folder, facts(), SOURCES, moment) for moment in (NOON, LATER))
    assert first != again
    for key in (None, signing_key()):
        earlier = provenance.document(first, key, None)
        assert provenance.document(again, key, earlier) == earlier
        assert provenance.document(again, key, None, Document(b"another"), earlier) == earlier


def test_a_different_statement_is_replaced(tmp_path: Path):
    """Another file, another key, a signature that is added or removed, or an invalid file."""
    folder, key = a_release(tmp_path), signing_key()
    first = provenance.statement(folder, facts(), SOURCES, NOON)
    (folder / "README.md").write_text("# Another")
    other = provenance.statement(folder, facts(), SOURCES, LATER)
    unsigned, signed = (provenance.document(first, by, None) for by in (None, key))
    assert provenance.document(other, key, signed) == Document(key.sign(other.to_bytes()).to_bytes())
    assert provenance.document(first, signing_key(2), signed) != signed
    assert provenance.document(first, key, unsigned) == signed
    assert provenance.document(first, None, signed) == unsigned
    for garbage in (b"", b"{", b"[]", b"[" * 100_000, b'{"predicate": null}'):
        assert provenance.document(first, None, Document(garbage)) == unsigned
        assert provenance.document(first, key, Document(garbage)) == signed


def test_a_signed_statement_is_an_envelope_around_the_same_bytes(tmp_path: Path):
    """The payload is the unsigned statement."""
    found = provenance.statement(a_release(tmp_path), facts(), SOURCES, NOON)
    envelope = Envelope.read(provenance.document(found, signing_key(), None).statement)
    assert envelope is not None
    assert envelope.document() == provenance.document(found, None, None).statement


def test_a_keyless_signature_is_stored_next_to_the_plain_statement(tmp_path: Path):
    """It is reused like that of a key, so a repeated publication creates no second log entry."""
    folder = a_release(tmp_path)
    first, again = (provenance.statement(folder, facts(), SOURCES, moment) for moment in (NOON, LATER))
    with local_sigstore() as sigstore:
        signer, other = (
            KeylessSigner(lambda account=account: sigstore.token(account=account), sigstore.trust_config())
            for account in ("default", "another")
        )
        earlier = provenance.document(first, signer, Document(first.to_bytes()))
        assert earlier.statement == first.to_bytes()
        assert provenance.is_signed(earlier, signer)
        assert provenance.document(again, signer, None, earlier) == earlier
        assert len(sigstore.entries) == 1
        assert not provenance.is_signed(earlier, other)
        assert provenance.document(again, other, earlier).statement == again.to_bytes()
        moved = Document(again.to_bytes(), earlier.bundle)
        assert not provenance.is_signed(moved, signer)
    earlier.write(folder)
    (folder / "card.md").touch()
    names = {entry.name for entry in provenance.statement(folder, facts(), SOURCES, NOON).subject}
    assert "card.md" in names
    assert not [name for name in names if name.startswith("provenance.json")]


def test_the_file_list_includes_the_statement_and_is_covered_by_it(tmp_path: Path):
    """So that a later release may delete the statement, and a changed list is detected."""
    folder = model(tmp_path / "release")
    assemble(folder, facts(), *outputs(tmp_path))
    assert "provenance.json" in json.loads((folder / "tunemill.json").read_text())["files"]
    assert "provenance.json.sigstore.json" not in json.loads((folder / "tunemill.json").read_text())["files"]
    found = provenance.statement(folder, facts(), SOURCES, NOON)
    names = {entry.name for entry in found.subject}
    assert names == {path.name for path in folder.iterdir()} - {"provenance.json"}
    keyless = facts(publish={"repository": "acme/support-tools", "signing": {"keyless": True}})
    assemble(folder, keyless, tmp_path / "trained", tmp_path / "evaluation")
    assert "provenance.json.sigstore.json" in json.loads((folder / "tunemill.json").read_text())["files"]


def test_the_builder_can_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two installations have different builders."""
    monkeypatch.setenv("TUNEMILL_BUILDER_ID", "https://ml.example.com/builders/prod")
    assert made(tmp_path)["predicate"]["runDetails"]["builder"]["id"] == "https://ml.example.com/builders/prod"


def test_train_records_its_image_for_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Publish may run in another image. An unknown image is left out."""
    provenance.record_image(tmp_path)
    assert provenance.recorded_image(tmp_path) == ""
    monkeypatch.setenv("TUNEMILL_IMAGE", PINNED)
    provenance.record_image(tmp_path)
    assert provenance.recorded_image(tmp_path) == PINNED

"""Publish of a trained run: gates, push, verification, and reuse of an existing release."""

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from huggingface_hub import RepoFile
from learn.runs import TrainedRun
from learn.training import Ended
from tunemill_api import keys
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.stage_report import Stage, StageFailure
from tunemill_api.status import PublishedFacts
from tunemill_dev.sigstore.local import FULCIO, ISSUER, local_sigstore
from tunemill_trainer.__main__ import main
from tunemill_trainer.prepared import Prepared


@pytest.fixture(scope="module")
def evaluated_run(extended_run: TrainedRun) -> TrainedRun:
    """An evaluated run with a passed gate."""
    run = extended_run.changed(evaluation={"gates": [{"metric": "exact_match", "min": "0.2"}]})
    assert run.stage(Stage.EVALUATE).code == 0
    return run


def to(run: TrainedRun, repository: str, **publish: object) -> TrainedRun:
    """The same run with another repository, which publishes only the adapter, as that is fastest."""
    return run.changed(publish={"repository": f"acme/{repository}", "artifacts": ["Adapter"], **publish})


@dataclass(frozen=True)
class Release:
    """A publication that tests only read."""

    run: TrainedRun
    facts: PublishedFacts


@pytest.fixture(scope="module")
def release(evaluated_run: TrainedRun) -> Release:
    """The evaluated run published as acme/whole, with the tag v1."""
    run = to(evaluated_run, "whole", tag="v1")
    return Release(run, published(run.stage(Stage.PUBLISH)))


def published(ended: Ended) -> PublishedFacts:
    """Return the facts of a stage, which has to have succeeded."""
    assert ended.code == 0, ended.log
    assert ended.report is not None
    assert ended.report.published is not None
    return ended.report.published


def failure(ended: Ended) -> StageFailure:
    """Return why a stage failed."""
    assert ended.report is not None
    assert ended.report.failure is not None, ended.log
    return ended.report.failure


def stored(run: TrainedRun, repository: str) -> Path:
    """Where the local Hub keeps a repository's contents by their digest."""
    return run.folder / "world" / "hub" / "models" / "acme" / repository / "blobs"


def adapter(run: TrainedRun, into: Path) -> Path:
    """Return the trained weights from the workspace."""
    run.world.workspace().fetch(Stage.TRAIN, run.train_key, into)
    return into / "adapter" / "adapter_model.safetensors"


def branches(run: TrainedRun, repository: str) -> set[str]:
    """Return the branches of a repository."""
    return {ref.name for ref in run.api.list_repo_refs(f"acme/{repository}").branches}


def blobs(run: TrainedRun, revision: str) -> dict[str, str]:
    """Return the digest of every file of a revision of acme/reverted."""
    tree = run.api.list_repo_tree("acme/reverted", revision=revision, recursive=True)
    return {entry.path: entry.blob_id for entry in tree if isinstance(entry, RepoFile)}


def run_tokens(run: TrainedRun, folder: Path) -> tuple[int, ...]:
    """Return the ids that end a reply."""
    assert run.run.prepared is not None
    run.world.workspace().fetch(Stage.PREPARE, run.run.prepared.key, folder / "prepared")
    return Prepared(folder / "prepared").tokens().stop_token_ids


def test_an_evaluated_run_is_published_completely(release: Release, tmp_path: Path):
    """One commit on the branch with the tag, all files, and the weights of the training."""
    run, facts = release.run, release.facts
    head, first = run.api.list_repo_commits("acme/whole")
    assert facts.revision == head.commit_id
    assert first.title == "initial commit" or first.commit_id != head.commit_id
    tags = {ref.name: ref.target_commit for ref in run.api.list_repo_refs("acme/whole").tags}
    assert tags == {"v1": facts.revision}
    files = set(run.api.list_repo_files("acme/whole", revision="v1"))
    assert {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "loss.png",
        "scores.png",
        "tunemill.json",
    } <= files
    assert branches(run, "whole") == {"main"}
    assert run.api.model_info("acme/whole").private
    there = run.api.hf_hub_download("acme/whole", "adapter_model.safetensors", local_dir=tmp_path / "there")
    assert Path(there).read_bytes() == adapter(run, tmp_path / "here").read_bytes()
    config = Path(run.api.hf_hub_download("acme/whole", "adapter_config.json", local_dir=tmp_path / "there"))
    assert json.loads(config.read_text())["base_model_name_or_path"] == "acme/tiny"


def verify(run: TrainedRun, repository: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Return the exit code of `tunemill verify` for a repository of acme."""
    monkeypatch.setenv("HF_TOKEN", (run.world.secrets / "hub-read" / "token").read_text())
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    return main(["verify", f"acme/{repository}", "--endpoint", run.world.hub_url, *options])


def provenance(run: TrainedRun, repository: str, into: Path) -> dict[str, Any]:
    """Return the provenance.json of a repository."""
    path = run.api.hf_hub_download(f"acme/{repository}", "provenance.json", local_dir=into)
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_a_release_has_its_provenance(release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commit is verified, the base model's files are those of the Hub, and the workspace keeps the statement."""
    run = release.run
    assert verify(run, "whole", monkeypatch, "--revision", release.facts.revision) == ExitCode.DONE
    definition = provenance(run, "whole", tmp_path)["predicate"]["buildDefinition"]
    assert run.run.prepared is not None
    stated = {entry["name"]: entry["digest"] for entry in definition["resolvedDependencies"]}
    assert stated["base model"] == {"gitCommit": run.run.prepared.base_model_revision}
    assert stated["training data"] == {"sha256": run.run.prepared.dataset_digest}
    weights = Path(run.api.hf_hub_download("acme/tiny", "model.safetensors", local_dir=tmp_path / "base"))
    assert stated["base model: model.safetensors"] == {"sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert definition["internalParameters"]["keys"]["train"] == run.train_key
    kept = run.world.workspace().fetch(Stage.PUBLISH, definition["internalParameters"]["keys"]["publish"], tmp_path)
    assert "provenance.json" in {file.path for file in kept.files}


def test_a_release_is_signed_with_a_key(evaluated_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is there unsigned is pushed again, once; a pod that died before its record makes no other commit."""
    key = ed25519.Ed25519PrivateKey.generate()
    unsigned = to(evaluated_run, "signed")
    signed = to(evaluated_run, "signed", signing={"keySecretRef": {"name": "release-key"}})
    before = published(unsigned.stage(Stage.PUBLISH))
    public = tmp_path / "public.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    assert verify(signed, "signed", monkeypatch, "--key", str(public)) == ExitCode.DATA_WRONG

    give_key(signed, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    after = published(signed.stage(Stage.PUBLISH))
    assert after.revision != before.revision
    assert verify(signed, "signed", monkeypatch, "--key", str(public)) == ExitCode.DONE
    again = signed.stage(Stage.PUBLISH)
    assert published(again) == after
    assert again.report is not None
    assert not again.report.executed

    signed.world.workspace().remove_manifest(
        Stage.PUBLISH, keys.publish_key(keys.evaluate_key(signed.train_key, signed.run.spec), signed.run.spec)
    )
    assert published(signed.stage(Stage.PUBLISH)) == after


def test_an_invalid_key_is_reported_before_the_push(evaluated_run: TrainedRun):
    """Nothing is pushed unsigned that was to be signed, and the message shows nothing of the key."""
    run = to(evaluated_run, "forged", signing={"keySecretRef": {"name": "release-key"}})
    for pem, words in ((b"", "found it empty or missing"), (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", "encrypted")):
        give_key(run, pem)
        ended = run.stage(Stage.PUBLISH)
        assert failure(ended).reason is Reason.CREDENTIALS_MISSING
        assert "spec.publish.signing.keySecretRef" in failure(ended).message
        assert words in failure(ended).message
    assert not run.api.repo_exists("acme/forged")


def test_a_release_is_signed_by_a_service_account(
    evaluated_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is pushed while Sigstore fails; then once, with one entry of the log."""
    run = to(evaluated_run, "keyless", signing={"keyless": True})
    ended = run.stage(Stage.PUBLISH)
    assert failure(ended).reason is Reason.CREDENTIALS_MISSING
    assert "sigstore.enabled" in failure(ended).remedy
    folder = run.world.secrets / "sigstore"
    folder.mkdir()
    with local_sigstore() as sigstore:
        token = sigstore.token()
        (folder / "token").write_text(token)
        (folder / "trust-config.json").write_text(sigstore.trust_config())
        for status, reason in ((503, Reason.SIGSTORE_UNREACHABLE), (403, Reason.SIGSTORE_REFUSED)):
            sigstore.failures[FULCIO] = status
            ended = run.stage(Stage.PUBLISH)
            assert failure(ended).reason is reason
            assert token not in ended.log
            assert not run.api.list_repo_commits("acme/keyless")[1:], "nothing is pushed"
        sigstore.failures.clear()
        first = published(run.stage(Stage.PUBLISH))
        again = run.stage(Stage.PUBLISH)
        assert published(again) == first
        assert again.report is not None
        assert not again.report.executed
        assert len(sigstore.entries) == 1
    trust = str(folder / "trust-config.json")
    account = "https://kubernetes.io/namespaces/team-a/serviceaccounts/default"
    options = ("--certificate-identity", account, "--certificate-oidc-issuer", ISSUER, "--trust-config", trust)
    assert verify(run, "keyless", monkeypatch, *options) == ExitCode.DONE
    assert verify(run, "keyless", monkeypatch, *options[2:], *options[:1], f"{account}-2") == ExitCode.DATA_WRONG


def give_key(run: TrainedRun, pem: bytes) -> None:
    """Mount a signing key, as the publish pod has it."""
    folder = run.world.secrets / "signing"
    folder.mkdir(exist_ok=True)
    (folder / "key.pem").write_bytes(pem)


def test_the_code_of_the_card_runs(release: Release, tmp_path: Path):
    """A user who copies the example gets a tool call from the published model."""
    run = release.run
    card = Path(run.api.hf_hub_download("acme/whole", "README.md", local_dir=tmp_path)).read_text()
    (code,) = re.findall(r"## Use\n+```python\n(.*?)```", card, re.DOTALL)
    environment = os.environ | {
        "HF_ENDPOINT": run.world.hub_url,
        "HF_TOKEN": (run.world.secrets / "hub-read" / "token").read_text(),
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    user = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert user.returncode == 0, user.stderr
    assert "<tool_call>" in user.stdout
    assert "get_weather" in user.stdout


def test_an_existing_release_is_not_published_again(release: Release):
    """A second pod asks the Hub, finds the commit, and changes nothing."""
    run = release.run
    again = run.stage(Stage.PUBLISH)
    assert published(again) == release.facts
    assert again.report is not None
    assert not again.report.executed
    assert len(run.api.list_repo_commits("acme/whole")) == 2


def test_a_published_run_removes_outputs_of_older_runs_of_its_object(evaluated_run: TrainedRun):
    """Every stage refers to its run's outputs, and publish removes the rest: an older training, and nothing shared."""

    def run_of_tidy(run: TrainedRun, run_id: str) -> TrainedRun:
        return replace(run, run=run.run.model_copy(update={"name": "tidy", "run_id": run_id}))

    run = to(evaluated_run, "tidy").changed(workspace={"keepRuns": 1})
    earlier = run_of_tidy(run.changed(training={"maxSteps": 1}), "run1")
    assert earlier.stage(Stage.TRAIN).code == 0
    workspace = run.world.workspace()
    assert workspace.manifest(Stage.TRAIN, earlier.train_key) is not None
    published(run_of_tidy(run, "run2").stage(Stage.PUBLISH))
    assert workspace.manifest(Stage.TRAIN, earlier.train_key) is None
    assert workspace.manifest(Stage.TRAIN, run.train_key) is not None
    assert {path.split("/")[5] for path in workspace.marks(f"runs/@/{run.run.namespace}/tidy/")} == {"run2"}


def test_a_replaced_model_is_published_again(evaluated_run: TrainedRun):
    """A revert in Git: the branch holds the earlier release again, file by file, and its tag follows."""
    first = to(evaluated_run, "reverted", tag="v1")
    other = to(evaluated_run, "reverted", tag="v2", serving="None")
    second = replace(other, run=other.run.model_copy(update={"run_id": "another"}))
    before, between = published(first.stage(Stage.PUBLISH)), published(second.stage(Stage.PUBLISH))
    reverted = first.stage(Stage.PUBLISH)
    after = published(reverted)
    assert reverted.report is not None
    assert reverted.report.executed
    assert len({before.revision, between.revision, after.revision}) == 3
    refs = first.api.list_repo_refs("acme/reverted")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": after.revision}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": after.revision, "v2": between.revision}
    assert blobs(first, before.revision) == blobs(first, after.revision) != blobs(first, between.revision)


def test_a_release_is_recreated_only_if_it_is_missing(evaluated_run: TrainedRun):
    """The Hub decides: not a note that people add to the branch, and not the record in the workspace.

    A note makes no other release. A pod that died after its push, before its record, leads to a proof and a record, not
    to another commit. A record does not stand for a model that was deleted.
    """
    run = to(evaluated_run, "recreated")
    first = published(run.stage(Stage.PUBLISH))

    key = keys.publish_key(keys.evaluate_key(run.train_key, run.run.spec), run.run.spec)
    run.world.workspace().remove_manifest(Stage.PUBLISH, key)
    unrecorded = run.stage(Stage.PUBLISH)
    assert published(unrecorded) == first
    assert unrecorded.report is not None
    assert unrecorded.report.executed

    run.api.upload_file(path_or_fileobj=b"Ask us first.", path_in_repo="NOTES.md", repo_id="acme/recreated")
    noted = run.stage(Stage.PUBLISH)
    assert published(noted) == first
    assert noted.report is not None
    assert not noted.report.executed
    assert "NOTES.md" in run.api.list_repo_files("acme/recreated")

    run.api.delete_repo("acme/recreated")
    remade = published(run.stage(Stage.PUBLISH))
    assert remade.revision != first.revision
    assert run.api.list_repo_commits("acme/recreated")[0].commit_id == remade.revision


def test_a_missed_gate_stops_before_the_push(evaluated_run: TrainedRun):
    """Nothing is created, torch is not imported, and the message has the metrics."""
    gate = {"metric": "abstention_accuracy", "minGainOverBase": "1"}
    run = to(evaluated_run, "held").changed(evaluation={"gates": [gate]})
    ended = run.stage(Stage.PUBLISH)
    assert ended.code == ExitCode.SPEC_WRONG
    assert failure(ended).reason is Reason.GATE_NOT_PASSED
    # Whatever was learnt: a base that calls nothing abstains always, and nothing can be better.
    assert "abstention_accuracy >= base + 1 (base 1.0000, tuned " in failure(ended).message
    assert not run.api.repo_exists("acme/held")


def test_a_draft_is_pushed_to_a_separate_branch_until_its_gate_is_lowered(evaluated_run: TrainedRun, tmp_path: Path):
    """Main is unchanged, no tag is set, a new repository is private; after the publication the draft is deleted."""
    gate = {"metric": "abstention_accuracy", "minGainOverBase": "1"}
    run = to(evaluated_run, "sketch", tag="v1", private=False).changed(
        evaluation={"gates": [gate], "onGateFailure": "Draft"}
    )
    facts = published(run.stage(Stage.PUBLISH))
    branch = f"tunemill-draft-{keys.evaluate_key(run.train_key, run.run.spec)}"
    assert (facts.draft, facts.branch, facts.tag) == (True, branch, "")
    assert run.api.list_repo_commits("acme/sketch", revision=branch)[0].commit_id == facts.revision
    assert set(run.api.list_repo_files("acme/sketch", revision="main")) == {".gitattributes"}
    assert "adapter_model.safetensors" in run.api.list_repo_files("acme/sketch", revision=branch)
    assert not run.api.list_repo_refs("acme/sketch").tags
    assert run.api.model_info("acme/sketch").private
    card = Path(run.api.hf_hub_download("acme/sketch", "README.md", revision=branch, local_dir=tmp_path)).read_text()
    assert "This is a draft, not a release" in card
    assert "abstention_accuracy >= base + 1" in card
    again = run.stage(Stage.PUBLISH)
    assert published(again) == facts
    assert again.report is not None
    assert not again.report.executed

    released = published(run.changed(evaluation={"gates": []}).stage(Stage.PUBLISH))
    assert (released.draft, released.branch, released.tag) == (False, "main", "v1")
    assert run.api.list_repo_commits("acme/sketch")[0].commit_id == released.revision
    assert branches(run, "sketch") == {"main"}


def test_gates_are_evaluated_without_torch():
    """A missed gate does not wait for the import."""
    code = "import sys; import tunemill_trainer.stages.publish; assert 'torch' not in sys.modules, 'torch is imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_changed_by_the_hub_are_not_published(evaluated_run: TrainedRun, tmp_path: Path):
    """The Hub serves other weights than were pushed: the user's branch is not moved."""
    run = to(evaluated_run, "corrupted")
    run.api.create_repo("acme/corrupted", private=True)
    weights = adapter(run, tmp_path).read_bytes()
    damaged = stored(run, "corrupted") / hashlib.sha256(weights).hexdigest()
    damaged.parent.mkdir(parents=True, exist_ok=True)
    # The Hub claims to have this content already, so that the client does not upload it.
    half = len(weights) // 2
    damaged.write_bytes(weights[:half] + bytes(len(weights) - half))
    ended = run.stage(Stage.PUBLISH)
    assert failure(ended).reason is Reason.PROOF_FAILED
    assert "logits differ" in failure(ended).message
    assert set(run.api.list_repo_files("acme/corrupted")) == {".gitattributes"}
    assert branches(run, "corrupted") == {"main"}


def test_unreadable_weights_are_not_published(evaluated_run: TrainedRun, tmp_path: Path):
    """The verification fails with the error that a user would get."""
    run = to(evaluated_run, "garbage")
    run.api.create_repo("acme/garbage", private=True)
    weights = adapter(run, tmp_path).read_bytes()
    damaged = stored(run, "garbage") / hashlib.sha256(weights).hexdigest()
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"\xff" * len(weights))
    ended = run.stage(Stage.PUBLISH)
    assert failure(ended).reason is Reason.PROOF_FAILED
    assert "cannot be loaded" in failure(ended).message
    assert set(run.api.list_repo_files("acme/garbage")) == {".gitattributes"}


def test_branch_and_visibility_are_configurable(evaluated_run: TrainedRun):
    """Main is unchanged."""
    run = to(evaluated_run, "open", branch="trials/one", private=False)
    facts = published(run.stage(Stage.PUBLISH))
    assert branches(run, "open") == {"main", "trials/one"}
    assert not run.api.model_info("acme/open").private
    assert run.api.list_repo_commits("acme/open", revision="trials/one")[0].commit_id == facts.revision
    assert len(run.api.list_repo_commits("acme/open")) == 1


def test_a_foreign_namespace_is_refused(evaluated_run: TrainedRun):
    """Before anything is loaded, with field and namespace."""
    ended = evaluated_run.changed(publish={"repository": "google/mine"}).stage(Stage.PUBLISH)
    assert failure(ended).reason is Reason.HUB_WRITE_DENIED
    assert "spec.publish.repository" in failure(ended).message
    assert ended.code == ExitCode.PERMISSION_DENIED


def test_new_tokens_require_a_merged_model_in_addition_to_the_adapter(
    evaluated_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The server cannot load the adapter: the merged model has a separate repository, named in the contract."""
    run = to(evaluated_run, "both", artifacts=["Auto", "Report"], tag="v1")
    facts = published(run.stage(Stage.PUBLISH))
    head = run.api.list_repo_commits("acme/both-merged")[0].commit_id
    assert facts.merged == f"acme/both-merged@{head}"
    assert facts.serving is not None
    assert facts.serving.model == facts.merged
    assert (facts.serving.adapter_servable, facts.serving.merged) == (False, True)
    assert "trainable_token_indices" in facts.serving.reason
    assert "replies parsed into the expected calls" in facts.serving.proof
    for repository in ("acme/both", "acme/both-merged"):
        files = set(run.api.list_repo_files(repository, revision="v1"))
        assert {"README.md", "report.html", "serving.json", "chat_template.jinja", "tokenizer.json"} <= files
        assert branches(run, repository.removeprefix("acme/")) == {"main"}
        assert verify(run, repository.removeprefix("acme/"), monkeypatch) == ExitCode.DONE
    assert "model.safetensors" in run.api.list_repo_files("acme/both-merged")
    contract = json.loads(Path(run.api.hf_hub_download("acme/both", "serving.json", local_dir=tmp_path)).read_text())
    assert contract["command"] == facts.serving.command
    run.api.delete_repo("acme/both-merged")
    again = run.stage(Stage.PUBLISH)
    assert published(again).merged.startswith("acme/both-merged@")
    assert again.report is not None
    assert again.report.executed


def test_a_merged_model_alone_uses_the_repository_of_the_spec(evaluated_run: TrainedRun, tmp_path: Path):
    """It loads without peft and without the base model, and nothing else is pushed."""
    run = to(evaluated_run, "alone", artifacts=["Merged"], serving="None")
    facts = published(run.stage(Stage.PUBLISH))
    assert facts.serving is None
    assert facts.merged == ""
    files = set(run.api.list_repo_files("acme/alone"))
    assert {"model.safetensors", "config.json", "generation_config.json"} <= files
    assert not {"adapter_config.json", "serving.json", "report.html"} & files
    assert not run.api.repo_exists("acme/alone-merged")
    settings = Path(run.api.hf_hub_download("acme/alone", "generation_config.json", local_dir=tmp_path)).read_text()
    assert json.loads(settings)["eos_token_id"] == list(run_tokens(run, tmp_path))

"""Other bucket users, and servers of a Hub, cannot make a run load content that its spec does not name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from learn.training import BASE, PREPARED_KEY, Ended, World, prepare, run_spec, run_stage
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import PreparedFacts
from tunemill_dev.tiny import rows


def rewrite(world: World, change: Callable[[dict], None], **base_model: str) -> None:
    """Change the manifest of prepare's output, and fields of its base-model.json with their digest."""
    client, place = world.s3(), f"tunemill/prepare/{PREPARED_KEY}/"

    def read(name: str) -> dict:
        return dict(json.loads(client.get_object(Bucket=world.bucket, Key=place + name)["Body"].read()))

    manifest = read("manifest.json")
    name = f"{manifest['attempt']}/base-model.json"
    body = json.dumps(read(name) | base_model).encode()
    [file] = [file for file in manifest["files"] if file["path"] == "base-model.json"]
    file |= {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)}
    change(manifest)
    client.put_object(Bucket=world.bucket, Key=place + name, Body=body)
    client.put_object(Bucket=world.bucket, Key=place + "manifest.json", Body=json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("changed", "facts", "message"),
    [
        ({"id": "acme/forbidden"}, {}, 'expected the base model acme/tiny, found "acme/forbidden"'),
        ({"revision": "c0ffee"}, {}, 'found "c0ffee"'),
        ({}, {"baseModelRevision": "c0ffee"}, 'found "c0ffee"'),
        ({}, {"datasetDigest": "1" * 64}, "expected the data in the manifest 0000"),
    ],
)
def test_train_rejects_a_modified_prepare_output(
    world: World, base: Path, tmp_path: Path, changed: dict[str, str], facts: dict[str, str], message: str
) -> None:
    """The stage fails, and prepare runs again."""
    prepared = prepare(world, base, tmp_path / "prepared", extend=True, count=20)
    rewrite(world, lambda manifest: manifest["facts"].update(facts), **changed)
    ended = run_stage(Stage.TRAIN, world, run_spec(world.spec(maxSteps=1), prepared), tmp_path / "work")
    assert ended.report is not None
    failure = ended.report.failure
    assert failure is not None, ended.log
    assert failure.reason == Reason.STAGE_OUTPUT_MISSING
    assert message in failure.message
    assert "spec.workspace.uri" in failure.remedy
    assert world.workspace().manifest(Stage.PREPARE, PREPARED_KEY) is None


def serve_other_content(folder: Path, base: Path, name: str, old: bytes, new: bytes) -> None:
    """Let the Hub serve other bytes under the same commit, as any server of spec.hub.endpoint could."""
    content = (base / name).read_bytes()
    assert len(old) == len(new)
    assert old in content
    blobs = [path for path in (folder / "hub").rglob("*") if path.is_file() and path.read_bytes() == content]
    assert blobs
    for path in blobs:
        path.chmod(0o644)
        path.write_bytes(content.replace(old, new))


def run_prepare(world: World, work: Path) -> tuple[Ended, PreparedFacts]:
    """Run prepare as a separate pod, which has to succeed."""
    text = "".join(json.dumps(row) + "\n" for row in rows(60))
    world.s3().put_object(Bucket=world.bucket, Key="calls.jsonl", Body=text.encode())
    ended = run_stage(Stage.PREPARE, world, run_spec(world.spec(maxSteps=1), None), work)
    assert ended.report is not None, ended.log
    assert ended.report.prepared is not None, ended.log
    return ended, ended.report.prepared


def test_a_different_tokenizer_at_the_same_commit_changes_the_key(world: World, base: Path, tmp_path: Path) -> None:
    """Outputs prepared from another Hub are not reused."""
    _, first = run_prepare(world, tmp_path / "first")
    again, same = run_prepare(world, tmp_path / "again")
    serve_other_content(tmp_path, base, "tokenizer_config.json", b'"<bos>"', b'"<eos>"')
    ended, poisoned = run_prepare(world, tmp_path / "poisoned")
    assert same == first
    assert again.report is not None
    assert not again.report.executed
    assert poisoned.base_model_revision == first.base_model_revision == HfApi(world.hub_url).model_info(BASE).sha
    assert poisoned.key != first.key
    assert ended.report is not None
    assert ended.report.executed


def test_weights_with_another_digest_are_not_loaded(world: World, base: Path, tmp_path: Path) -> None:
    """A Hub that announces the sha256 of the real weights but serves others is detected."""
    _, prepared = run_prepare(world, tmp_path / "prepare")
    content = (base / "model.safetensors").read_bytes()
    serve_other_content(tmp_path, base, "model.safetensors", content, content[:-4] + b"evil")
    ended = run_stage(Stage.TRAIN, world, run_spec(world.spec(maxSteps=1), prepared), tmp_path / "train")
    assert ended.report is not None
    failure = ended.report.failure
    assert failure is not None, ended.log
    assert failure.reason == Reason.BASE_MODEL_NOT_FOUND
    assert "model.safetensors of spec.baseModel" in failure.message
    assert "spec.hub.endpoint" in failure.remedy

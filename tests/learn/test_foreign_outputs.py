"""Who may write to the bucket, or serves a Hub, cannot make another run load what its spec does not name."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from learn.training import PREPARED_KEY, World, a_world, prepare, run_spec, run_stage
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_dev.tiny.cached import cached_base


@pytest.fixture(scope="module")
def base() -> Path:
    """A tiny base; nothing has to be learnt here."""
    return cached_base("gemma2", steps=0)


@pytest.fixture
def world(tmp_path: Path, base: Path) -> Iterator[World]:
    """Its services."""
    with a_world(tmp_path, base) as running:
        yield running


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
def test_train_loads_no_other_base_model_and_no_other_data(
    world: World, base: Path, tmp_path: Path, changed: dict[str, str], facts: dict[str, str], message: str
) -> None:
    """Proves that whoever rewrites prepare's output gets a failed stage, and prepare is done again."""
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

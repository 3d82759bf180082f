"""A stage's output is committed to the workspace atomically, and a download is verified."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from pydantic import ValidationError
from trainer.storage.buckets import Bucket, a_bucket, a_folder
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.bucket import BucketPrefix
from tunemill_trainer.storage.workspace import ManifestFile, Workspace

KEY = "00112233aabbccdd"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """An empty bucket."""
    with a_bucket() as empty:
        yield empty


def facts(steps: int = 1) -> TrainedFacts:
    """Return facts that differ in their steps."""
    return TrainedFacts(steps=steps, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


def test_a_committed_output_can_be_fetched(bucket: Bucket, tmp_path: Path) -> None:
    """Round trip of files, folders and facts, and the paths of the files."""
    folder = a_folder(tmp_path / "out", a_txt="one", deep__er__b_txt="two")
    writer = bucket.workspace()
    writer.commit(Stage.TRAIN, KEY, folder, facts(7))

    manifest = bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert TrainedFacts.model_validate(manifest.facts) == facts(7)
    assert (tmp_path / "in" / "a.txt").read_text() == "one"
    assert (tmp_path / "in" / "deep" / "er" / "b.txt").read_text() == "two"
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "part", without={"deep/er/b.txt"})
    assert [path.name for path in (tmp_path / "part").rglob("*") if path.is_file()] == ["a.txt"]
    assert f"{writer.uri(Stage.TRAIN, KEY)}/a.txt" == f"s3://{bucket.name}/runs/train/{KEY}/{manifest.attempt}/a.txt"


def test_an_output_exists_only_with_its_manifest(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that dies during the upload leaves no output, and the next one removes its files."""
    dying = bucket.workspace()
    put_object = bucket.client.put_object

    def die(**options: object) -> object:
        if "IfNoneMatch" in options:
            raise KeyboardInterrupt
        return put_object(**options)

    monkeypatch.setattr(bucket.client, "put_object", die)
    with pytest.raises(KeyboardInterrupt):
        dying.commit(Stage.TRAIN, KEY, a_folder(tmp_path / "first", a_txt="torn"), facts(1))
    assert bucket.names(f"runs/train/{KEY}/")
    assert bucket.workspace().manifest(Stage.TRAIN, KEY) is None

    monkeypatch.setattr(bucket.client, "put_object", put_object)
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "second", a_txt="whole"), facts(2))
    assert len(bucket.names(f"runs/train/{KEY}/")) == 2
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == "whole"


def test_one_of_two_pods_with_the_same_work_wins(bucket: Bucket, tmp_path: Path) -> None:
    """Outputs are never mixed: the other pod gets the winner's facts, and its files are removed."""
    folders = [a_folder(tmp_path / str(number), a_txt=f"a{number}", b_txt=f"b{number}") for number in range(4)]
    results: list[int] = []

    def commit(number: int) -> None:
        manifest = bucket.workspace().commit(Stage.TRAIN, KEY, folders[number], facts(number))
        results.append(TrainedFacts.model_validate(manifest.facts).steps)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    winner = results[0]
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == f"a{winner}"
    assert (tmp_path / "in" / "b.txt").read_text() == f"b{winner}"


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_output_is_removed_and_computed_again(bucket: Bucket, tmp_path: Path, damage: str) -> None:
    """A changed or missing file is detected, and the stage is not skipped afterwards."""
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="right"), facts())
    [name] = [name for name in bucket.names() if name.endswith("a.txt")]
    if damage == "changed":
        bucket.put(name, b"wrong")
    else:
        bucket.remove(name)
    with pytest.raises(StageError, match=r"a\.txt") as error:
        bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert error.value.reason == Reason.STAGE_OUTPUT_MISSING
    assert error.value.exit_code == 69
    assert bucket.workspace().manifest(Stage.TRAIN, KEY) is None


def test_a_missing_output_is_reported(bucket: Bucket, tmp_path: Path) -> None:
    """With the reason for which the operator restarts the stage that computes it."""
    with pytest.raises(StageError, match="output of prepare") as error:
        bucket.workspace().fetch(Stage.PREPARE, KEY, tmp_path)
    assert error.value.reason == Reason.STAGE_OUTPUT_MISSING


def test_existing_files_are_not_downloaded_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluate, in the pod of train, downloads nothing twice."""
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one", b_txt="two"), facts())
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    (tmp_path / "in" / "b.txt").write_text("stale")
    fetched: list[str] = []
    original = bucket.client.download_file
    monkeypatch.setattr(bucket.client, "download_file", lambda *args: (fetched.append(args[1]), original(*args)))
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert [name.rpartition("/")[2] for name in fetched] == ["b.txt"]
    assert (tmp_path / "in" / "b.txt").read_text() == "two"


def test_the_newest_complete_checkpoint_is_used(bucket: Bucket, tmp_path: Path) -> None:
    """Incomplete and damaged checkpoints are skipped."""
    for step in (5, 10, 15, 20):
        bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / str(step), state_json=str(step)), step)
    [torn] = [name for name in bucket.names() if "00000020" in name and name.endswith("manifest.json")]
    [damaged] = [name for name in bucket.names() if "00000015" in name and name.endswith("state.json")]
    bucket.remove(torn)
    bucket.put(damaged, b"nonsense")
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") == 10
    assert (tmp_path / "in" / "state.json").read_text() == "10"


def test_objects_deleted_by_another_attempt_are_ignored(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with one key do not fail each other, also on servers that return 404 for a deleted object."""
    bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / "5", state_json="5"), 5)
    delete = bucket.client.delete_object

    def gone(**request: str) -> None:
        delete(**request)
        raise ClientError({"Error": {"Code": "NoSuchKey", "Message": "it does not exist"}}, "DeleteObject")

    monkeypatch.setattr(bucket.client, "delete_object", gone)
    manifest = bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), facts())
    assert [file.path for file in manifest.files] == ["a.txt"]
    assert not [name for name in bucket.names() if "/checkpoints/" in name]


def test_a_missing_checkpoint_is_no_error(bucket: Bucket, tmp_path: Path) -> None:
    """Training starts from the beginning."""
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") is None


def test_old_checkpoints_are_removed_and_all_of_them_by_the_commit(bucket: Bucket, tmp_path: Path) -> None:
    """The workspace does not grow with the length of a training."""
    for step in (5, 10, 15):
        bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / str(step), state_json=str(step)), step)
    bucket.workspace().prune_checkpoints(KEY, keep=2)
    assert {name.split("/")[4][:8] for name in bucket.names()} == {"00000010", "00000015"}
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), facts())
    assert not [name for name in bucket.names() if "checkpoints" in name]


def test_missing_permissions_are_reported_before_training(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing permission to delete, for example, with the field to change."""

    def denied(**options: object) -> None:
        response = {"Error": {"Code": "AccessDenied", "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
        raise ClientError(response, "DeleteObject")

    bucket.workspace().check_writable()
    assert bucket.names() == []
    monkeypatch.setattr(bucket.client, "delete_object", denied)
    with pytest.raises(StageError, match=r"spec\.workspace") as error:
        bucket.workspace().check_writable()
    assert error.value.reason == Reason.S3_ACCESS_DENIED


@pytest.mark.parametrize("path", ["../up", "a/../../up", "/etc/passwd", "a\\b", ""])
def test_a_manifest_cannot_name_files_outside_of_its_folder(path: str) -> None:
    """The content of a bucket does not determine where files are written on the disk."""
    with pytest.raises(ValidationError, match="expected a relative path without"):
        ManifestFile(path=path, size=1, sha256="0")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_a_whole_bucket_can_be_the_workspace(uri: str, bucket: Bucket) -> None:
    """With an empty prefix, no key begins with a slash."""
    assert (
        Workspace(BucketPrefix(bucket.client, uri, "spec.workspace"))
        .uri(Stage.TRAIN, KEY)
        .startswith(f"s3://bucket/train/{KEY}/")
    )


def copied(bucket: Bucket, source: str, target: str) -> None:
    """Copy everything below one prefix to another, as a user with write access to the bucket can."""
    for name in bucket.names(f"runs/{source}"):
        body = bucket.client.get_object(Bucket=bucket.name, Key=name)["Body"].read()
        bucket.put(name.replace(source, target), body)


def test_a_copied_output_is_not_accepted(bucket: Bucket, tmp_path: Path) -> None:
    """An output is valid at its own path only. Otherwise the stage runs again."""
    other = "ffffffffffffffff"
    bucket.workspace().commit(Stage.TRAIN, other, a_folder(tmp_path / "out", a_txt="other"), facts(9))
    copied(bucket, f"train/{other}", f"train/{KEY}")
    with pytest.raises(StageError, match=f"the manifest of train/{other}, expected that of train/{KEY}") as error:
        bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert error.value.reason == Reason.STAGE_OUTPUT_MISSING
    assert not (tmp_path / "in").exists(), "nothing of it is downloaded"

    copied(bucket, f"train/{other}", f"train/{KEY}")
    assert bucket.workspace().manifest(Stage.TRAIN, KEY) is None
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "right", a_txt="right"), facts(1))
    assert bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in").key == KEY
    assert bucket.workspace().manifest(Stage.TRAIN, other) is not None


def test_a_checkpoint_of_another_training_is_skipped(bucket: Bucket, tmp_path: Path) -> None:
    """Training does not resume from a checkpoint that was copied from another training."""
    other = "ffffffffffffffff"
    bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / "own", state_json="own"), 5)
    bucket.workspace().put_checkpoint(other, a_folder(tmp_path / "other", state_json="other"), 50)
    copied(bucket, f"train/{other}", f"train/{KEY}")
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") == 5
    assert (tmp_path / "in" / "state.json").read_text() == "own"

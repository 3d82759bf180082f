"""A stage's output is in the workspace whole or not at all, and what is fetched is what was committed."""

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
    """Return facts that are told apart by their steps."""
    return TrainedFacts(steps=steps, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


def test_what_is_committed_can_be_fetched(bucket: Bucket, tmp_path: Path) -> None:
    """Proves the round trip of files in folders and of facts, and where the files lie."""
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


def test_nothing_is_committed_until_the_manifest_is_there(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that a pod that dies while it uploads leaves no output, and that the next one cleans up behind it."""
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


def test_of_two_pods_with_the_same_work_one_wins_whole(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that outputs are never mixed: the loser gets the winner's facts, and its files go."""
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
def test_a_damaged_output_is_withdrawn_so_that_it_is_made_again(bucket: Bucket, tmp_path: Path, damage: str) -> None:
    """Proves that a file with other bytes, or none, is found, and that the stage is not skipped after that."""
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


def test_an_output_that_was_never_committed_is_said_to_be_missing(bucket: Bucket, tmp_path: Path) -> None:
    """Proves the reason with which the operator starts again from the stage that makes it."""
    with pytest.raises(StageError, match="output of prepare") as error:
        bucket.workspace().fetch(Stage.PREPARE, KEY, tmp_path)
    assert error.value.reason == Reason.STAGE_OUTPUT_MISSING


def test_files_that_are_there_already_are_not_downloaded_again(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that evaluate, in train's pod, fetches nothing twice."""
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one", b_txt="two"), facts())
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    (tmp_path / "in" / "b.txt").write_text("stale")
    fetched: list[str] = []
    original = bucket.client.download_file
    monkeypatch.setattr(bucket.client, "download_file", lambda *args: (fetched.append(args[1]), original(*args)))
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert [name.rpartition("/")[2] for name in fetched] == ["b.txt"]
    assert (tmp_path / "in" / "b.txt").read_text() == "two"


def test_the_newest_whole_checkpoint_is_taken(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that torn and damaged checkpoints are passed over, newest first."""
    for step in (5, 10, 15, 20):
        bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / str(step), state_json=str(step)), step)
    [torn] = [name for name in bucket.names() if "00000020" in name and name.endswith("manifest.json")]
    [damaged] = [name for name in bucket.names() if "00000015" in name and name.endswith("state.json")]
    bucket.remove(torn)
    bucket.put(damaged, b"nonsense")
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") == 10
    assert (tmp_path / "in" / "state.json").read_text() == "10"


def test_what_another_attempt_has_removed_needs_no_removing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proves that two runs with one key do not fail each other, on servers that answer 404 for a deleted object too."""
    bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / "5", state_json="5"), 5)
    delete = bucket.client.delete_object

    def gone(**request: str) -> None:
        delete(**request)
        raise ClientError({"Error": {"Code": "NoSuchKey", "Message": "it does not exist"}}, "DeleteObject")

    monkeypatch.setattr(bucket.client, "delete_object", gone)
    manifest = bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), facts())
    assert [file.path for file in manifest.files] == ["a.txt"]
    assert not [name for name in bucket.names() if "/checkpoints/" in name]


def test_without_a_checkpoint_training_begins(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that none is no error."""
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") is None


def test_old_checkpoints_are_removed_and_all_of_them_by_the_commit(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that the workspace does not grow with the training."""
    for step in (5, 10, 15):
        bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / str(step), state_json=str(step)), step)
    bucket.workspace().prune_checkpoints(KEY, keep=2)
    assert {name.split("/")[4][:8] for name in bucket.names()} == {"00000010", "00000015"}
    bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), facts())
    assert not [name for name in bucket.names() if "checkpoints" in name]


def test_a_workspace_that_cannot_be_written_is_found_at_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proves that a missing right to delete shows before a training, with the field to change."""

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
    """Proves that what lies in a bucket never decides where on the disk something is written."""
    with pytest.raises(ValidationError, match="expected a relative path without"):
        ManifestFile(path=path, size=1, sha256="0")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/"])
def test_a_whole_bucket_can_be_the_workspace(uri: str, bucket: Bucket) -> None:
    """Proves that an empty prefix gives no key that begins with a slash."""
    assert (
        Workspace(BucketPrefix(bucket.client, uri, "spec.workspace"))
        .uri(Stage.TRAIN, KEY)
        .startswith(f"s3://bucket/train/{KEY}/")
    )


def copied(bucket: Bucket, source: str, target: str) -> None:
    """Copy everything below one prefix to another, as somebody who may write to the bucket can."""
    for name in bucket.names(f"runs/{source}"):
        body = bucket.client.get_object(Bucket=bucket.name, Key=name)["Body"].read()
        bucket.put(name.replace(source, target), body)


def test_an_output_that_was_copied_to_the_place_of_another_is_not_taken(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that a whole output passes for no other one, whose stage is then done again."""
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


def test_a_checkpoint_of_another_training_is_passed_over(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that nobody's training goes on from the checkpoint of another one that was copied beside its own."""
    other = "ffffffffffffffff"
    bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / "own", state_json="own"), 5)
    bucket.workspace().put_checkpoint(other, a_folder(tmp_path / "other", state_json="other"), 50)
    copied(bucket, f"train/{other}", f"train/{KEY}")
    assert bucket.workspace().latest_checkpoint(KEY, tmp_path / "in") == 5
    assert (tmp_path / "in" / "state.json").read_text() == "own"

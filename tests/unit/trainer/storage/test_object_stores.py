"""Both object stores, S3 and a local folder, behave the same."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer.storage.buckets import a_bucket
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.bucket import BucketPrefix
from tunemill_trainer.storage.folder import Folder
from tunemill_trainer.storage.objects import NoObjectError, ObjectExistsError, ObjectStore
from tunemill_trainer.storage.workspace import Workspace

KEY = "0123456789abcdef"
FACTS = TrainedFacts(adapter="", steps=3, loss="0.1", train_seconds=1, device="cpu")


@pytest.fixture(params=["bucket", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty store."""
    if request.param == "folder":
        yield Folder(tmp_path / "workspace", "spec.workspace")
        return
    with a_bucket() as bucket:
        yield BucketPrefix(bucket.client, f"s3://{bucket.name}/tunemill/", "spec.workspace")


def test_objects_are_written_read_listed_and_deleted(store: ObjectStore):
    """`put` replaces objects, and `list` finds them by prefix."""
    assert (store.list(""), store.read_small("train/a.json")) == ({}, None)
    store.put("train/a.json", b"1")
    store.put("train/a.json", b"22")
    store.put("train-b", b"")
    body, written_at = store.read_small("train/a.json")
    assert (body, store.list("train/")) == (b"22", {"train/a.json": written_at})
    assert list(store.list("train")) == ["train-b", "train/a.json"]
    store.delete(["train/a.json", "was-never-there"])
    assert list(store.list("")) == ["train-b"]


def test_the_first_of_many_writers_wins(store: ObjectStore):
    """`put_new` writes each object once, with any number of concurrent writers."""
    outcomes = []

    def write(number: int) -> None:
        try:
            store.put_new("manifest.json", str(number).encode())
        except ObjectExistsError:
            return
        outcomes.append(str(number).encode())

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert outcomes == [store.read_small("manifest.json")[0]]
    assert not store.overwrites("other.json")


def test_files_are_uploaded_and_downloaded(store: ObjectStore, tmp_path: Path):
    """A missing object is reported."""
    (tmp_path / "in").write_bytes(b"weights")
    store.upload(tmp_path / "in", "a/b/c")
    store.download("a/b/c", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"weights"
    with pytest.raises(NoObjectError):
        store.download("a/b/d", tmp_path / "out")


def test_an_output_is_committed_atomically(store: ObjectStore, tmp_path: Path):
    """One of two attempts is kept. A damaged file is noticed, and the stage runs again."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "adapter.bin").write_bytes(b"weights")
    first, second = Workspace(store), Workspace(store)
    first.check_writable()
    assert store.list("") == {}
    kept = first.commit(Stage.TRAIN, KEY, tmp_path / "made", FACTS)
    assert second.commit(Stage.TRAIN, KEY, tmp_path / "made", FACTS) == kept
    assert sorted(store.list("")) == [f"train/{KEY}/{kept.attempt}/adapter.bin", f"train/{KEY}/manifest.json"]
    assert second.fetch(Stage.TRAIN, KEY, tmp_path / "fetched") == kept
    store.put(f"train/{KEY}/{kept.attempt}/adapter.bin", b"others")
    with pytest.raises(StageError, match="sha256") as error:
        second.fetch(Stage.TRAIN, KEY, tmp_path / "again")
    assert error.value.reason is Reason.STAGE_OUTPUT_MISSING
    assert second.manifest(Stage.TRAIN, KEY) is None


def test_an_unusable_folder_is_reported(tmp_path: Path):
    """The message has the field and the path, and the remedy what to set."""
    (tmp_path / "file").write_text("")
    workspace = Workspace(Folder(tmp_path / "file" / "below", "spec.workspace"))
    with pytest.raises(StageError, match=r"file/below \(spec\.workspace\.uri\) as a folder") as error:
        workspace.check_writable()
    assert error.value.reason is Reason.INVALID_SPEC


def test_empty_folders_are_removed(tmp_path: Path):
    """Except the folder of the store itself."""
    store = Folder(tmp_path / "workspace", "spec.workspace")
    store.put("train/a/b", b"")
    store.delete(["train/a/b"])
    assert list((tmp_path / "workspace").iterdir()) == []

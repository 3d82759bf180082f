"""Faults of an S3 server at each call of the stages: transient ones are retried, permanent ones are reported."""

import logging
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from trainer.storage.buckets import Bucket, a_folder
from trainer.storage.faults import Fault, FaultyServer, Script, a_faulty_server
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_trainer.data.sources import DataFetcher
from tunemill_trainer.errors import StageError
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.hub import Hub

pytestmark = pytest.mark.slow

KEY = "00112233aabbccdd"
LARGE = "0123456789" * 900_000
"""9 MB: goes up and comes down in parts."""
FACTS = TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """A separate server for this module."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with a_faulty_server() as faulty:
        yield faulty


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations of the waits between retries, which are skipped."""
    waited: list[float] = []
    monkeypatch.setattr("botocore.endpoint.time.sleep", waited.append)
    return waited


def everything(bucket: Bucket, folder: Path, large: str = "small") -> None:
    """Do what stages do with S3: check the workspace, fetch data, commit, fetch and skip outputs, keep checkpoints.

    Raises:
        AssertionError: something that was read is not what was written.
    """
    workspace = bucket.workspace()
    workspace.check_writable()
    places = DataFetcher(lambda: bucket.client, Hub("", None), StopSignal())
    data = places.fetch(f"s3://{bucket.name}/data/", "spec.dataset", folder / "data")
    assert [file.path.read_text() for file in data.files] == ["one" * 999, "two" * 999]
    made = a_folder(folder / "made", a_txt="one", large_bin=large)
    workspace.commit(Stage.TRAIN, KEY, made, FACTS)
    workspace.put_checkpoint(KEY, made, 5)
    workspace.prune_checkpoints(KEY, keep=1)
    assert workspace.latest_checkpoint(KEY, folder / "checkpoint") == 5
    assert_whole(bucket, folder / "fetched", large)
    assert (folder / "checkpoint" / "large.bin").read_text() == large


def assert_whole(bucket: Bucket, folder: Path, large: str = "small") -> None:
    """Fetch the output with its facts."""
    manifest = bucket.workspace().fetch(Stage.TRAIN, KEY, folder)
    assert TrainedFacts.model_validate(manifest.facts) == FACTS
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "one", "large.bin": large}


def a_full_bucket(server: FaultyServer) -> Bucket:
    """A bucket with two files of data."""
    bucket = server.bucket()
    bucket.put("data/1.jsonl", b"one" * 999)
    bucket.put("data/2.jsonl", b"two" * 999)
    return bucket


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.INTERNAL, Fault.RESET, Fault.LOST, Fault.TRUNCATED])
def test_a_transient_fault_at_any_call_is_retried(
    server: FaultyServer, pauses: list[float], tmp_path: Path, fault: Fault
) -> None:
    """A busy server, or a connection lost before or after the operation or within the response: once at each call."""
    bucket = a_full_bucket(server)
    server.script = Script(fault, once=True)
    everything(bucket, tmp_path, LARGE)
    calls = server.script.calls
    assert {call.split()[0] for call in calls} == {"GET", "PUT", "POST", "DELETE"}
    for part in ("list-type=2", "partNumber=2", "bytes="):
        assert any(part in call for call in calls)
    assert len(pauses) >= 10


LASTING = {Fault.EXPIRED: Reason.S3_ACCESS_DENIED, Fault.SLOW_DOWN: Reason.S3_UNREACHABLE}


def test_a_permanent_fault_is_reported_and_leaves_no_partial_output(server: FaultyServer, tmp_path: Path) -> None:
    """From any call on. A later attempt finds a complete output or none, and succeeds.

    The faults alternate from call to call, because each case takes hundreds of requests.
    """
    bucket = a_full_bucket(server)
    server.script = Script()
    everything(bucket, tmp_path / "clean")
    calls = server.script.calls
    assert len(calls) > 20
    for (after, call), (fault, reason) in zip(enumerate(calls), cycle(LASTING.items()), strict=False):
        bucket = a_full_bucket(server)
        server.script = Script(fault, after)
        with pytest.raises(StageError) as raised:
            everything(bucket, tmp_path / str(after))
        assert raised.value.reason is reason, f"{fault} after {after} calls, at {call}: {raised.value}"
        assert f"s3://{bucket.name}/" in raised.value.message
        assert raised.value.failure.remedy
        server.script = Script()
        if bucket.workspace().manifest(Stage.TRAIN, KEY) is not None:
            assert_whole(bucket, tmp_path / f"{after}-found")
        everything(bucket, tmp_path / f"{after}-again")


def test_a_repeatedly_interrupted_body_fails(server: FaultyServer, tmp_path: Path) -> None:
    """It is resumed a few times, and then left to the next pod."""
    bucket = a_full_bucket(server)
    server.script = Script(Fault.TRUNCATED)
    with pytest.raises(StageError) as raised, s3.s3_errors("s3://b/k"):
        list(s3.chunks(bucket.client, bucket.name, "data/1.jsonl"))
    assert raised.value.reason is Reason.S3_UNREACHABLE
    assert len(server.script.calls) == len(s3.WAITS_SECONDS) + 1

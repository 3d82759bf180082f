"""The workspace on an S3 server that people host themselves, which is that of the local cluster."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError
from trainer.core.buckets import Bucket, a_folder
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.ports import free_ports
from tunemill_trainer import s3
from tunemill_trainer.credentials import S3Credentials

KEY = "00112233aabbccdd"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    """An empty bucket of Versity's S3 gateway."""
    program = binaries.ensure([binaries.S3])[binaries.S3.name] / "versitygw"
    (port,) = free_ports(1)
    for name in ("data", "metadata"):
        (tmp_path / name).mkdir()
    options = ["--access", "key", "--secret", "secret", "--port", f"127.0.0.1:{port}", "--quiet"]
    # Metadata beside the files: not every file system has extended attributes.
    storage = ["posix", "--sidecar", str(tmp_path / "metadata"), str(tmp_path / "data")]
    with subprocess.Popen([program, *options, *storage], stdout=subprocess.DEVNULL) as server:
        try:
            client = s3.client(f"http://127.0.0.1:{port}", "us-east-1", S3Credentials("key", "secret"))
            for _ in range(20):  # each time boto3 asks four times
                try:
                    client.create_bucket(Bucket="team-a")
                    break
                except EndpointConnectionError:
                    time.sleep(0.1)
            yield Bucket(f"http://127.0.0.1:{port}", "team-a", client)
        finally:
            server.terminate()


def facts(steps: int) -> TrainedFacts:
    """Return facts that are told apart by their steps."""
    return TrainedFacts(steps=steps, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


def test_of_two_pods_with_the_same_work_one_wins_on_a_server_of_ones_own(bucket: Bucket, tmp_path: Path) -> None:
    """Proves that the server passes the check of the first use, and that outputs are whole and never mixed."""
    bucket.workspace().check_writable()
    assert bucket.names() == []
    folders = [a_folder(tmp_path / str(number), a_txt=f"a{number}", b_txt=f"b{number}") for number in range(4)]
    winners: list[int] = []

    def commit(number: int) -> None:
        manifest = bucket.workspace().commit(Stage.TRAIN, KEY, folders[number], facts(number))
        winners.append(TrainedFacts.model_validate(manifest.facts).steps)

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 4
    assert len(set(winners)) == 1
    bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == f"a{winners[0]}"
    assert (tmp_path / "in" / "b.txt").read_text() == f"b{winners[0]}"

"""The workspace on a self-hosted S3 server, that of the local cluster."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer.storage.buckets import Bucket, a_folder, new_bucket
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_dev.cluster import binaries
from tunemill_dev.cluster.ports import free_ports
from tunemill_dev.cluster.processes import wait_until

KEY = "00112233aabbccdd"


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Bucket]:
    """An empty bucket of Versity's S3 gateway."""
    program = binaries.ensure([binaries.S3])[binaries.S3.name] / "versitygw"
    (port,) = free_ports(1)
    for name in ("data", "metadata"):
        (tmp_path / name).mkdir()
    options = ["--access", "key", "--secret", "secret", "--port", f"127.0.0.1:{port}", "--quiet"]
    # Metadata in separate files: not every file system has extended attributes.
    storage = ["posix", "--sidecar", str(tmp_path / "metadata"), str(tmp_path / "data")]
    with subprocess.Popen([program, *options, *storage], stdout=subprocess.DEVNULL) as server:
        try:
            assert wait_until(lambda: accepts_connections(port), seconds=60), "versitygw does not listen"
            yield new_bucket(port)
        finally:
            server.terminate()


def accepts_connections(port: int) -> bool:
    """Return whether a server listens at this port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def facts(steps: int) -> TrainedFacts:
    """Return facts that differ in their steps."""
    return TrainedFacts(steps=steps, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


def test_of_two_pods_with_the_same_work_one_wins_on_a_self_hosted_server(bucket: Bucket, tmp_path: Path) -> None:
    """The server passes the check at first use, and outputs are complete and never mixed."""
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

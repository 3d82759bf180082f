"""A bucket on a test's own S3 server."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from moto.server import ThreadedMotoServer
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.bucket import BucketPrefix
from tunemill_trainer.storage.credentials import S3Credentials
from tunemill_trainer.storage.manifest_keys import ManifestKeys
from tunemill_trainer.storage.workspace import Workspace

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client


@dataclass(frozen=True)
class Bucket:
    """An empty bucket with a unique name, as all moto servers of a process share their buckets."""

    url: str
    name: str
    client: "S3Client"

    def workspace(self, keys: ManifestKeys | None = None) -> Workspace:
        """Return a workspace in it, as a separate pod has it."""
        return Workspace(BucketPrefix(self.client, f"s3://{self.name}/runs/", "spec.workspace"), keys)

    def names(self, prefix: str = "") -> list[str]:
        """Return the keys of all objects below a prefix."""
        return [
            item["Key"] for item in self.client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", [])
        ]

    def put(self, key: str, body: bytes) -> None:
        """Write an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def remove(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=self.name, Key=key)


def new_bucket(port: int) -> Bucket:
    """Create a bucket on the server at this port of loopback."""
    url = f"http://127.0.0.1:{port}"
    client = s3.client(url, "us-east-1", S3Credentials("key", "secret"))
    name = f"team-{uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    return Bucket(url, name, client)


@contextmanager
def a_bucket() -> Iterator[Bucket]:
    """Serve an empty bucket until the block ends."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield new_bucket(server.get_host_and_port()[1])
    finally:
        server.stop()


def a_folder(folder: Path, **contents: str) -> Path:
    """Write files into a folder; `__` in a name stands for a slash and `_` for a dot."""
    for name, text in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder

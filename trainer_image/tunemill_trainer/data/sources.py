"""Brings the data from S3 to the work folder and takes its digest."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.failures import Reason

from tunemill_trainer.data.files import Data, DataFile
from tunemill_trainer.errors import StageError
from tunemill_trainer.s3 import s3_errors, split_uri
from tunemill_trainer.stop import StopSignal

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""What is taken from below a prefix."""

_CHUNK_BYTES = 1 << 20


def fetch(client: "S3Client", uri: str, field: str, into: Path, stop: StopSignal) -> Data:
    """Download an object, or all objects of the known endings below a prefix that ends in a slash.

    Args:
        client: of the server where the data lies.
        uri: s3://bucket/key, s3://bucket/prefix/ or s3://bucket.
        field: the part of the spec that holds the uri, for messages.
        into: an empty folder. The names in it are ours: a key never becomes a path.
        stop: looked at between chunks.

    Raises:
        StageError: BucketNotFound, ObjectNotFound, S3AccessDenied, S3Unreachable or CredentialsMissing.
    """
    bucket, key = split_uri(uri)
    into.mkdir(parents=True, exist_ok=True)
    with s3_errors(uri, field):
        keys = _below(client, bucket, key, uri, field) if not key or key.endswith("/") else [key]
        files = []
        for number, name in enumerate(keys):
            path = into / f"{number:06d}"
            shown = name.removeprefix(key) or name.rsplit("/", 1)[-1]
            files.append(DataFile(shown, path, _download(client, bucket, name, path, stop)))
    return Data(uri, tuple(files))


def _below(client: "S3Client", bucket: str, prefix: str, uri: str, field: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    found = [item["Key"] for page in pages for item in page.get("Contents", [])]
    usable = sorted(name for name in found if name.endswith(ENDINGS))
    if not usable:
        raise StageError(
            Reason.OBJECT_NOT_FOUND,
            f"expected objects ending in {', '.join(ENDINGS)} below {uri} ({field}.uri), "
            f"found {len(found)} objects and none of these",
        )
    return usable


def _download(client: "S3Client", bucket: str, key: str, path: Path, stop: StopSignal) -> str:
    digest = hashlib.sha256()
    body = client.get_object(Bucket=bucket, Key=key)["Body"]
    with path.open("wb") as file:
        for chunk in body.iter_chunks(_CHUNK_BYTES):
            stop.check()
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()

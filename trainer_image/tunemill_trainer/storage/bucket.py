"""Objects below a prefix of an S3 bucket."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from tunemill_trainer.storage import s3
from tunemill_trainer.storage.objects import NoObjectError, ObjectExistsError

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

_GONE = {"404", "NoSuchKey"}
"""Error codes of servers for an object that does not exist."""


class BucketPrefix:
    """An `ObjectStore` on S3. All methods raise StageError with the reasons of `s3.s3_errors`."""

    def __init__(self, client: "S3Client", uri: str, field: str) -> None:
        """Create the store. It sends no request.

        Args:
            client: the S3 client.
            uri: s3://bucket/prefix, with or without a trailing slash.
            field: the part of the spec that has the URI, for messages.
        """
        self._client, self._field = client, field
        self._bucket, prefix = s3.split_uri(uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""

    def uri(self, name: str) -> str:
        """See ObjectStore."""
        return f"s3://{self._bucket}/{self._prefix}{name}"

    def overwrites(self, name: str) -> bool:
        """See ObjectStore."""
        with self._errors(name):
            try:
                self._put_new(name, b"{}")
                self._put_new(name, b"{}")
            except ObjectExistsError:
                return False
            except ClientError as error:
                if _status(error) != HTTPStatus.NOT_IMPLEMENTED:
                    raise
                self.put(name, b"{}")
            return True

    def read_small(self, name: str) -> tuple[bytes, datetime] | None:
        """See ObjectStore."""
        with self._errors(name):
            try:
                return s3.read_small(self._client, self._bucket, self._prefix + name)
            except self._client.exceptions.NoSuchKey:
                return None

    def put(self, name: str, body: bytes) -> None:
        """See ObjectStore."""
        with self._errors(name):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=body)

    def put_new(self, name: str, body: bytes) -> None:
        """See ObjectStore."""
        with self._errors(name):
            self._put_new(name, body)

    def upload(self, path: Path, name: str) -> None:
        """See ObjectStore."""
        with self._errors(name):
            self._client.upload_file(str(path), self._bucket, self._prefix + name)

    def download(self, name: str, path: Path) -> None:
        """See ObjectStore."""
        with self._errors(name):
            try:
                self._client.download_file(self._bucket, self._prefix + name, str(path))
            except ClientError as error:
                if error.response["Error"]["Code"] in _GONE:
                    raise NoObjectError from error
                raise

    def list(self, prefix: str) -> dict[str, datetime]:
        """See ObjectStore."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            return {
                item["Key"].removeprefix(self._prefix): item["LastModified"]
                for page in pages
                for item in page.get("Contents", [])
            }

    def delete(self, names: Iterable[str]) -> None:
        """See ObjectStore."""
        for name in names:
            # One by one: DeleteObjects needs a checksum that some S3-compatible servers do not support.
            with self._errors(name):
                try:
                    self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)
                except ClientError as error:
                    # S3 returns 204 for a missing object, some compatible servers return 404.
                    if error.response["Error"]["Code"] not in _GONE:
                        raise

    def _put_new(self, name: str, body: bytes) -> None:
        for wait in (*s3.WAITS_SECONDS, None):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + name,
                    Body=body,
                    ContentType="application/json",
                    IfNoneMatch="*",
                )
            except ClientError as error:
                status = _status(error)
                if status == HTTPStatus.PRECONDITION_FAILED:
                    raise ObjectExistsError from error
                # 409: another write of the same object is in progress, and may fail. S3 documents to retry.
                if status != HTTPStatus.CONFLICT or wait is None:
                    raise
                time.sleep(wait)
            else:
                return

    def _errors(self, name: str) -> AbstractContextManager[None]:
        return s3.s3_errors(self.uri(name), self._field)


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))

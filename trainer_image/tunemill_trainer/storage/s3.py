"""The S3 client for data sets and workspaces, and the conversion of its errors."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import boto3
from boto3.exceptions import RetriesExceededError, S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.credentials import S3Credentials

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

WAITS_SECONDS = (1.0, 2.0, 4.0)
"""Waits before a request is repeated whose response body broke off."""
_CHUNK_BYTES = 1 << 20

_DENIED = {
    "AccessDenied",
    "AllAccessDisabled",
    "AccountProblem",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "Forbidden",
    "403",
    "401",
}
_FULL = {"XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "EntityTooLargeForQuota", "507"}
_WRONG_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}


def client(endpoint: str, region: str, credentials: S3Credentials | None) -> "S3Client":
    """Return a client with short timeouts and few retries, so that a stage reports errors early.

    Args:
        endpoint: the server's URL; empty means AWS.
        region: the region; empty means the default of the environment.
        credentials: None means boto3's default chain: environment, web identity, instance profile.
    """
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 4},
        # Self-hosted servers rarely have a DNS name for each bucket.
        s3={"addressing_style": "path"} if endpoint else {},
        # Since botocore 1.36, the default is trailing checksums, which many S3-compatible servers reject.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region or None,
        aws_access_key_id=credentials.access_key_id if credentials else None,
        aws_secret_access_key=credentials.secret_access_key if credentials else None,
        aws_session_token=credentials.session_token if credentials else None,
        config=config,
    )


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`; the key may be empty or end in a slash."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def chunks(client: "S3Client", bucket: str, key: str) -> Iterator[bytes]:
    """Yield the content of an object in chunks.

    boto3 retries errors before the first byte. A body that breaks off later is resumed at that position, from the same
    version of the object.

    Raises:
        BotoCoreError, ClientError: for use within `s3_errors`.
    """
    done = 0
    rest: dict[str, Any] = {}
    for wait in (*WAITS_SECONDS, None):
        response = client.get_object(Bucket=bucket, Key=key, **rest)
        try:
            for chunk in response["Body"].iter_chunks(_CHUNK_BYTES):
                done += len(chunk)
                yield chunk
        except (HTTPClientError, IncompleteReadError):
            if wait is None:
                raise
            time.sleep(wait)
            rest = {"Range": f"bytes={done}-", "IfMatch": response["ETag"]}
        else:
            return


def read_small(client: "S3Client", bucket: str, key: str) -> tuple[bytes, datetime]:
    """Return the content of a small object, and when this version of it was written, by the server's clock.

    Raises:
        BotoCoreError, ClientError: for use within `s3_errors`.
    """
    for wait in WAITS_SECONDS:
        response = client.get_object(Bucket=bucket, Key=key)
        try:
            return response["Body"].read(), response["LastModified"]
        except (HTTPClientError, IncompleteReadError):
            time.sleep(wait)
    response = client.get_object(Bucket=bucket, Key=key)
    return response["Body"].read(), response["LastModified"]


@contextmanager
def s3_errors(uri: str, field: str = "spec.dataset") -> Iterator[None]:
    """Convert exceptions of boto3 inside the block to a StageError.

    Args:
        uri: the object or bucket that the block accesses, for the message.
        field: the part of the spec with uri, endpoint, region and credentialsSecretRef.

    Raises:
        StageError: BucketNotFound, ObjectNotFound, S3AccessDenied, S3Unreachable, CredentialsMissing, InvalidSpec or
            DiskFull.
    """
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError, RetriesExceededError) as error:
        raise _explained(_origin(error), uri, field) from error
    except ValueError as error:
        # boto3 raises a plain ValueError for an invalid URL.
        if "endpoint" not in str(error).lower():
            raise
        raise StageError(
            Reason.INVALID_SPEC, f"expected the URL of an S3 server in {field}.endpoint: {error}"
        ) from error


def _origin(error: BaseException) -> BaseException:
    """Return the exception that the transfer manager wrapped."""
    if isinstance(error, RetriesExceededError):
        last: BaseException = error.last_exception  # type: ignore[attr-defined] # the stubs do not know it
        return last
    if isinstance(error, S3UploadFailedError) and error.__context__ is not None:
        return error.__context__
    return error


def _explained(error: BaseException, uri: str, field: str) -> StageError:
    if isinstance(error, ClientError):
        return _refused(error, uri, field)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | CredentialRetrievalError | NoAuthTokenError):
        return StageError(
            Reason.CREDENTIALS_MISSING,
            f"found no credentials for {uri} ({field}.uri): {error}; set {field}.credentialsSecretRef, or give the pod "
            "an identity with serviceAccountName in spec.podTemplates",
        )
    return StageError(Reason.S3_UNREACHABLE, f"cannot reach the S3 server of {uri} (see {field}.endpoint): {error}")


def _refused(error: ClientError, uri: str, field: str) -> StageError:
    details = error.response["Error"]
    code, text = str(details.get("Code", "")), str(details.get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    operation = error.operation_name
    bucket, key = split_uri(uri)
    if code in _FULL or status == 507:
        return StageError(
            Reason.S3_STORAGE_FULL, f"the S3 server of {uri} has no space left ({operation}: {code} {text})"
        )
    if code == "NoSuchBucket" or (status == 404 and operation in {"HeadBucket", "ListObjectsV2"}):
        return StageError(Reason.BUCKET_NOT_FOUND, f"bucket {bucket!r} of {uri} ({field}.uri) does not exist")
    if status == 404:
        return StageError(Reason.OBJECT_NOT_FOUND, f"{field}.uri is {uri}: bucket {bucket!r} has no object {key!r}")
    if code in _WRONG_REGION or status == 301:
        return StageError(
            Reason.INVALID_SPEC, f"bucket {bucket!r} is not in the region of {field}.region ({code} {text})"
        )
    if code in _DENIED or status in {401, 403}:
        return StageError(
            Reason.S3_ACCESS_DENIED,
            f"the credentials of {field}.credentialsSecretRef have no permission for {operation} on {uri} "
            f"({code} {text})",
        )
    return StageError(
        Reason.S3_UNREACHABLE, f"{operation} failed on the S3 server of {uri}: HTTP {status} {code} {text}"
    )

"""The S3 client that data and workspace share, and what its errors mean to a user."""

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
"""Before a body that broke off is asked for again."""
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
    """Return a client that gives up early enough for a stage to say what is wrong.

    Args:
        endpoint: the server's URL; empty means AWS.
        region: empty means what the environment says.
        credentials: None means boto3's own chain: environment, web identity, instance profile.
    """
    config = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 4},
        # Servers of one's own seldom have a DNS name a bucket.
        s3={"addressing_style": "path"} if endpoint else {},
        # The default since botocore 1.36 sends trailing checksums, which many S3-compatible servers refuse.
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
    """Yield the bytes of an object.

    boto3 asks again for what fails before the first byte. A body that breaks off later is taken up where it did, from
    the same version of the object.

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
    """Return the bytes of a small object, and when that very version of it was written, by the server's clock.

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
    """Turn what boto3 raises inside the block into a StageError.

    Args:
        uri: what the block works on, for the message.
        field: the part of the spec that holds uri, endpoint, region and credentialsSecretRef.

    Raises:
        StageError: BucketNotFound, ObjectNotFound, S3AccessDenied, S3Unreachable, CredentialsMissing, InvalidSpec or
            DiskFull.
    """
    try:
        yield
    except (BotoCoreError, ClientError, S3UploadFailedError, RetriesExceededError) as error:
        raise _explained(_origin(error), uri, field) from error
    except ValueError as error:
        # boto3 has no class of its own for a URL that it cannot use.
        if "endpoint" not in str(error).lower():
            raise
        raise StageError(
            Reason.INVALID_SPEC, f"expected the URL of an S3 server in {field}.endpoint: {error}"
        ) from error


def _origin(error: BaseException) -> BaseException:
    """Return what the transfer manager wrapped."""
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
            f"{uri} ({field}.uri) needs credentials and the pod has none: {error}; set {field}.credentialsSecretRef, "
            "or give the pod an identity with serviceAccountName in spec.podTemplates",
        )
    return StageError(Reason.S3_UNREACHABLE, f"could not reach the S3 server of {uri} (see {field}.endpoint): {error}")


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
        return StageError(Reason.BUCKET_NOT_FOUND, f"{field}.uri is {uri}, and its server has no bucket {bucket!r}")
    if status == 404:
        return StageError(Reason.OBJECT_NOT_FOUND, f"{field}.uri is {uri}, and bucket {bucket!r} has no object {key!r}")
    if code in _WRONG_REGION or status == 301:
        return StageError(Reason.INVALID_SPEC, f"{field}.region is not the region of bucket {bucket!r} ({code} {text})")
    if code in _DENIED or status in {401, 403}:
        return StageError(
            Reason.S3_ACCESS_DENIED,
            f"{operation} on {uri} was denied ({code} {text}) to the credentials of {field}.credentialsSecretRef",
        )
    return StageError(
        Reason.S3_UNREACHABLE, f"the S3 server of {uri} failed at {operation}: HTTP {status} {code} {text}"
    )

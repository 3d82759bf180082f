"""The conversion of S3 errors to failure reasons."""

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, SSLError
from trainer.storage.buckets import Bucket, a_bucket
from tunemill_api.failures import Reason
from tunemill_dev.cluster.ports import free_ports
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage import s3
from tunemill_trainer.storage.credentials import S3Credentials

URI = "s3://team-a/calls.jsonl"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An empty bucket."""
    with a_bucket() as empty:
        yield empty


def refused(code: str, status: int, operation: str = "GetObject") -> ClientError:
    """Return what boto3 raises for an answer."""
    return ClientError(
        {"Error": {"Code": code, "Message": "said so"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        operation,
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (refused("NoSuchBucket", 404), Reason.BUCKET_NOT_FOUND),
        (refused("404", 404, "HeadBucket"), Reason.BUCKET_NOT_FOUND),
        (refused("NoSuchKey", 404), Reason.OBJECT_NOT_FOUND),
        (refused("404", 404, "HeadObject"), Reason.OBJECT_NOT_FOUND),
        (refused("AccessDenied", 403), Reason.S3_ACCESS_DENIED),
        (refused("403", 403, "HeadObject"), Reason.S3_ACCESS_DENIED),
        (refused("InvalidAccessKeyId", 403), Reason.S3_ACCESS_DENIED),
        (refused("ExpiredToken", 400), Reason.S3_ACCESS_DENIED),
        (refused("PermanentRedirect", 301), Reason.INVALID_SPEC),
        (refused("AuthorizationHeaderMalformed", 400), Reason.INVALID_SPEC),
        (refused("XMinioStorageFull", 507, "PutObject"), Reason.S3_STORAGE_FULL),
        (refused("SlowDown", 503), Reason.S3_UNREACHABLE),
        (refused("InternalError", 500), Reason.S3_UNREACHABLE),
        (NoCredentialsError(), Reason.CREDENTIALS_MISSING),
        (EndpointConnectionError(endpoint_url="http://gone"), Reason.S3_UNREACHABLE),
        (SSLError(endpoint_url="https://self-signed", error="certificate verify failed"), Reason.S3_UNREACHABLE),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_every_error_has_a_reason_with_uri_and_field(error: Exception, reason: Reason) -> None:
    """Every message has the URI and the field of the spec."""
    with pytest.raises(StageError) as raised, s3.s3_errors(URI, "spec.dataset"):
        raise error
    assert raised.value.reason == reason
    assert "spec.dataset" in raised.value.message or URI in raised.value.message


def test_an_unreachable_server_is_reported() -> None:
    """A refused connection fails within the client's retries, with the endpoint's field."""
    (port,) = free_ports(1)
    client = s3.client(f"http://127.0.0.1:{port}", "us-east-1", S3Credentials("key", "secret"))
    with pytest.raises(StageError, match=r"spec\.dataset\.endpoint") as error, s3.s3_errors(URI):
        client.head_object(Bucket="team-a", Key="calls.jsonl")
    assert error.value.reason == Reason.S3_UNREACHABLE


def test_an_upload_reports_the_error_of_the_server(bucket: Bucket, tmp_path: object) -> None:
    """The exception inside that of boto3's transfer manager is used."""
    with pytest.raises(StageError) as error, s3.s3_errors("s3://no-such-bucket/x", "spec.workspace"):
        bucket.client.upload_file(__file__, "no-such-bucket", "x")
    assert error.value.reason == Reason.BUCKET_NOT_FOUND


def test_an_invalid_endpoint_is_reported_with_its_field() -> None:
    """Users do not see the ValueError of boto3."""
    with pytest.raises(StageError, match=r"spec\.workspace\.endpoint") as error, s3.s3_errors(URI, "spec.workspace"):
        s3.client("not a url", "", None)
    assert error.value.reason == Reason.INVALID_SPEC


def test_other_errors_pass() -> None:
    """A bug of Tunemill is not reported as an error of the server."""
    with pytest.raises(ValueError, match="ours"), s3.s3_errors(URI):
        raise ValueError("ours")


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/k", ("b", "k")),
        ("s3://b/deep/k.jsonl", ("b", "deep/k.jsonl")),
        ("s3://b/prefix/", ("b", "prefix/")),
        ("s3://b", ("b", "")),
    ],
)
def test_a_uri_has_a_bucket_and_a_key(uri: str, parts: tuple[str, str]) -> None:
    """URIs are split into bucket and key."""
    assert s3.split_uri(uri) == parts

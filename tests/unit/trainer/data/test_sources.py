"""Sources of data: objects, prefixes and globs on S3, data sets on the Hub."""

import gzip
import hashlib
import json
from io import BytesIO
from types import SimpleNamespace

import boto3
import huggingface_hub.constants
import pytest
from botocore.response import StreamingBody
from huggingface_hub import HfApi
from moto import mock_aws
from pydantic import TypeAdapter, ValidationError
from tunemill_api.failures import Reason
from tunemill_api.scalars import DataUri
from tunemill_dev.hub.accounts import Accounts
from tunemill_dev.hub.local import local_hub
from tunemill_trainer.data.records import records
from tunemill_trainer.data.sources import DataFetcher, matching
from tunemill_trainer.errors import Interrupted, StageError
from tunemill_trainer.process.stop import StopSignal
from tunemill_trainer.storage.hub import Hub

OBJECTS = {
    "calls/a.jsonl": b'{"n": 1}\n',
    "calls/b.jsonl.gz": gzip.compress(b'{"n": 2}\n'),
    "calls/c.json": b'[{"n": 3}]',
    "calls/readme.txt": b"no rows",
    "calls/deep/d.jsonl": b'{"n": 4}\n',
    "calls-of-others.jsonl": b'{"n": 5}\n',
}


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Fetch from a bucket, and return the names and the numbers of the rows."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="team-a")
        for key, content in OBJECTS.items():
            client.put_object(Bucket="team-a", Key=key, Body=content)

        def run(uri, stop=None):
            data = DataFetcher(lambda: client, Hub("", None), stop or StopSignal()).fetch(
                uri, "spec.dataset", tmp_path / "f"
            )
            return {file.name: [record.value["n"] for record in records(file)] for file in data.files}, data

        run.client = client
        yield run


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://team-a/calls/a.jsonl", {"a.jsonl": [1]}),
        ("s3://team-a/calls/", {"a.jsonl": [1], "b.jsonl.gz": [2], "c.json": [3], "deep/d.jsonl": [4]}),
        ("s3://team-a/calls/*.jsonl", {"a.jsonl": [1]}),
        ("s3://team-a/calls/*", {"a.jsonl": [1], "b.jsonl.gz": [2], "c.json": [3]}),
        ("s3://team-a/calls/**.jsonl", {"a.jsonl": [1], "deep/d.jsonl": [4]}),
        ("s3://team-a/*/?.json*", {"calls/a.jsonl": [1], "calls/b.jsonl.gz": [2], "calls/c.json": [3]}),
        ("s3://team-a/calls*.jsonl", {"calls-of-others.jsonl": [5]}),
    ],
)
def test_an_object_a_prefix_and_globs(fetch, uri, found):
    """Files are in the order of their keys, with names relative to the folder of the URI."""
    assert fetch(uri)[0] == found


@pytest.mark.parametrize("uri", ["s3://team-a/calls/*.csv", "s3://team-a/calls/*.txt", "s3://team-a/nothing/"])
def test_a_uri_without_data_files_is_reported(fetch, uri):
    """With the URI, the expected suffixes, and the number of other objects."""
    with pytest.raises(StageError) as raised:
        fetch(uri)
    assert raised.value.reason is Reason.OBJECT_NOT_FOUND
    assert (
        f"{uri} (spec.dataset.uri), found {int('txt' in uri)} objects, none with such a suffix" in raised.value.message
    )


OUTPUT = "tunemill/team-b/prepare/0123456789abcdef/0a1b2c3d/evaluation.jsonl"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://team-a/{OUTPUT}",
        "s3://team-a/tunemill/team-b/",
        "s3://team-a/tunemill/**/evaluation.jsonl",
        "s3://team-a/**/evaluation.jsonl",
    ],
)
def test_the_output_of_a_stage_is_not_input_data(fetch, uri):
    """Otherwise the workspace of another team could be used as training data."""
    fetch.client.put_object(Bucket="team-a", Key=OUTPUT, Body=b'{"n": 9}')
    with pytest.raises(StageError, match=r"spec\.dataset\.uri is .*the output of a stage") as raised:
        fetch(uri)
    assert raised.value.reason is Reason.INVALID_SPEC
    assert "spec.dataset.uri" in raised.value.remedy


def test_outputs_next_to_the_data_are_skipped(fetch):
    """A prefix that contains both data and workspace stands for the data."""
    fetch.client.put_object(Bucket="team-a", Key=OUTPUT, Body=b'{"n": 9}')
    names = {"a.jsonl", "b.jsonl.gz", "c.json", "deep/d.jsonl"}
    assert fetch("s3://team-a/")[0].keys() == {"calls-of-others.jsonl", *(f"calls/{name}" for name in names)}


def test_the_digest_is_that_of_the_bytes(fetch):
    """It equals the output of sha256sum."""
    _, data = fetch("s3://team-a/calls/a.jsonl")
    assert data.digest == hashlib.sha256(OBJECTS["calls/a.jsonl"]).hexdigest()


def test_a_key_never_becomes_a_path(tmp_path):
    """Anyone with write access to the bucket chooses the keys, so local files have other names."""
    pages = [
        {"Contents": [{"Key": key} for key in ("calls/../../up.jsonl", "calls//etc/passwd.jsonl", "calls/a\n.jsonl")]}
    ]
    client = SimpleNamespace(
        get_paginator=lambda _: SimpleNamespace(paginate=lambda **_: pages),
        get_object=lambda **_: {"Body": StreamingBody(BytesIO(b'{"n": 1}\n'), 9), "ETag": "x"},
    )
    data = DataFetcher(lambda: client, Hub("", None), StopSignal()).fetch(
        "s3://team-a/calls/", "spec.dataset", tmp_path / "f"
    )
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["000000", "000001", "000002"]
    assert {file.path.parent for file in data.files} == {tmp_path / "f"}


def test_a_request_to_stop_is_followed(fetch):
    """Between chunks of a download."""
    stop = StopSignal()
    stop.request()
    with pytest.raises(Interrupted):
        fetch("s3://team-a/calls/", stop)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("a/*.jsonl", "a/b.jsonl", True),
        ("a/*.jsonl", "a/b/c.jsonl", False),
        ("a/**.jsonl", "a/b/c.jsonl", True),
        ("a/?.json", "a/b.json", True),
        ("a/?.json", "a/bb.json", False),
        ("a+(b)/*", "a+(b)/c", True),
    ],
)
def test_wildcards_stay_within_a_folder(pattern, name, matches):
    """As in a shell; other characters are literal."""
    assert bool(matching(pattern).fullmatch(name)) is matches


TOKEN = "a-token-of-alice"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with a data set in two splits."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    accounts = Accounts.model_validate(
        {"users": {"alice": {}}, "tokens": [{"value": TOKEN, "user": "alice", "role": "write"}]}
    )
    with local_hub(accounts, data=tmp_path / "hub") as served:
        api = HfApi(endpoint=served.url, token=TOKEN)
        api.create_repo("alice/calls", repo_type="dataset", private=True)
        for name, content in (
            ("data/train-00000-of-00002.jsonl", '{"n": 1}'),
            ("data/train-00001-of-00002.jsonl", '{"n": 2}'),
            ("data/test-00000-of-00001.jsonl", '{"n": 3}'),
            ("dataset_infos.json", json.dumps({"n": 9})),
        ):
            api.upload_file(
                path_or_fileobj=content.encode(), path_in_repo=name, repo_id="alice/calls", repo_type="dataset"
            )
        api.create_tag("alice/calls", tag="v1", repo_type="dataset")

        def run(uri, token=TOKEN):
            data = DataFetcher(pytest.fail, Hub(served.url, token), StopSignal()).fetch(
                uri, "spec.dataset", tmp_path / "f"
            )
            return {file.name: [record.value["n"] for record in records(file)] for file in data.files}

        run.api = api
        yield run


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("hf://alice/calls", {"data/train-00000-of-00002.jsonl": [1], "data/train-00001-of-00002.jsonl": [2]}),
        ("hf://datasets/alice/calls@v1/data/test*", {"test-00000-of-00001.jsonl": [3]}),
        ("hf://alice/calls/data/test-00000-of-00001.jsonl", {"test-00000-of-00001.jsonl": [3]}),
        (
            "hf://alice/calls@main/data/",
            {
                "test-00000-of-00001.jsonl": [3],
                "train-00000-of-00002.jsonl": [1],
                "train-00001-of-00002.jsonl": [2],
            },
        ),
    ],
)
def test_a_data_set_on_the_hub(hub, uri, found):
    """Without a path its training split, otherwise the files of the path; metadata files are skipped."""
    assert hub(uri) == found


@pytest.mark.parametrize(
    ("uri", "token", "reason"),
    [
        ("hf://alice/absent", TOKEN, Reason.DATASET_NOT_FOUND),
        ("hf://alice/calls@v9", TOKEN, Reason.DATASET_NOT_FOUND),
        ("hf://alice/calls/data/absent.jsonl", TOKEN, Reason.DATASET_NOT_FOUND),
        ("hf://alice/calls/*.csv", TOKEN, Reason.OBJECT_NOT_FOUND),
        ("hf://alice/calls", None, Reason.DATASET_NOT_FOUND),
        ("hf://alice/calls", "wrong", Reason.HUB_TOKEN_INVALID),
    ],
)
def test_an_unreadable_data_set_is_reported_with_the_reason(hub, uri, token, reason):
    """Each message names the data set, not the base model."""
    with pytest.raises(StageError) as raised:
        hub(uri, token)
    assert raised.value.reason is reason, raised.value.message


def test_a_gated_data_set_is_distinguished_from_a_missing_one(hub):
    """The remedy differs: accept the terms."""
    hub.api.update_repo_settings("alice/calls", repo_type="dataset", private=False, gated="manual")
    with pytest.raises(StageError) as raised:
        hub("hf://alice/calls", None)
    assert raised.value.reason is Reason.DATASET_GATED


@pytest.mark.parametrize(
    ("uri", "valid"),
    [
        ("s3://team-a/calls/*.jsonl", True),
        ("s3://team-a", True),
        ("hf://acme/calls", True),
        ("hf://datasets/acme/calls@v1.2/data/*.parquet", True),
        ("hf://calls", False),
        ("http://acme.example/calls.jsonl", False),
        ("s3://x/calls", False),
        ("", False),
    ],
)
def test_uris_that_a_manifest_can_use(uri, valid):
    """The API server rejects others."""
    adapter = TypeAdapter(DataUri)
    if valid:
        assert adapter.validate_python(uri) == uri
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(uri)

"""With a key, an output is accepted only if a pod of the namespace signed its manifest."""

import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from trainer.storage.buckets import Bucket, a_bucket, a_folder
from tunemill_api.failures import Reason
from tunemill_api.finetune import Workspace as ApiWorkspace
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.credentials import Credentials
from tunemill_trainer.storage.manifest_keys import ManifestKeys
from tunemill_trainer.storage.workspace import Workspace

KEY = "00112233aabbccdd"
MANIFEST = f"runs/train/{KEY}/manifest.json"
KEYS, OTHER = ManifestKeys(b"k" * 32), ManifestKeys(b"o" * 32)
FACTS = TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """An empty bucket."""
    with a_bucket() as empty:
        yield empty


def committed(bucket: Bucket, folder: Path, keys: ManifestKeys | None, text: str = "original") -> None:
    """Commit an output of train, as a pod with these keys does."""
    bucket.workspace(keys).commit(Stage.TRAIN, KEY, a_folder(folder, adapter_txt=text), FACTS)


def read(bucket: Bucket, name: str = MANIFEST) -> bytes:
    """Return an object."""
    return bucket.client.get_object(Bucket=bucket.name, Key=name)["Body"].read()


def test_signed_outputs_are_accepted_with_and_without_the_key(bucket: Bucket, tmp_path: Path) -> None:
    """Removing the key does not recompute anything. The format is the one that own-image.md documents."""
    committed(bucket, tmp_path / "out", KEYS)
    for number, keys in enumerate((KEYS, None)):
        manifest = bucket.workspace(keys).fetch(Stage.TRAIN, KEY, tmp_path / f"in-{number}")
        assert TrainedFacts.model_validate(manifest.facts) == FACTS
    document = json.loads(read(bucket))
    text = f"train/{KEY}/\n" + json.dumps(
        {name: value for name, value in document.items() if name != "signature"}, sort_keys=True, separators=(",", ":")
    )
    assert document["signature"] == "hmac-sha256:" + hmac.new(KEYS.key, text.encode(), "sha256").hexdigest()


@pytest.mark.parametrize("writer", [None, OTHER])
def test_outputs_of_other_bucket_users_are_not_used(
    bucket: Bucket, tmp_path: Path, writer: ManifestKeys | None
) -> None:
    """Nothing is downloaded, the message has a remedy, and the stage runs again."""
    committed(bucket, tmp_path / "poison", writer, "poison")
    with pytest.raises(StageError, match=r"signed.*spec\.workspace\.manifestKeySecretRef") as error:
        bucket.workspace(KEYS).fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert error.value.reason == Reason.STAGE_OUTPUT_MISSING
    assert "trusted-before" in error.value.failure.remedy
    assert not (tmp_path / "in").exists()

    committed(bucket, tmp_path / "poison-again", writer, "poison")
    assert bucket.workspace(KEYS).manifest(Stage.TRAIN, KEY) is None
    committed(bucket, tmp_path / "original", KEYS)
    bucket.workspace(KEYS).fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert (tmp_path / "in" / "adapter.txt").read_text() == "original"


@pytest.mark.parametrize(
    "change",
    [
        {"facts": {"steps": 2}},
        {"files": []},
        {"attempt": "mine"},
        {"signature": ""},
        {"signature": None},
        {"signature": "hmac-sha256:é"},
        {"unknown": 1},
    ],
)
def test_a_signed_manifest_cannot_be_changed(bucket: Bucket, tmp_path: Path, change: dict[str, object]) -> None:
    """The signature covers every field."""
    committed(bucket, tmp_path / "out", KEYS)
    bucket.put(MANIFEST, json.dumps(json.loads(read(bucket)) | change).encode())
    assert bucket.workspace(KEYS).manifest(Stage.TRAIN, KEY) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'{"a":' * 5000, b"\xff"])
def test_an_object_that_is_no_manifest_is_replaced(bucket: Bucket, tmp_path: Path, body: bytes) -> None:
    """Objects of other bucket users do not block a stage."""
    bucket.put(MANIFEST, body)
    assert bucket.workspace(KEYS).manifest(Stage.TRAIN, KEY) is None
    committed(bucket, tmp_path / "out", KEYS)


def test_a_signed_checkpoint_is_not_accepted_as_output(bucket: Bucket, tmp_path: Path) -> None:
    """The signature covers the path: a checkpoint has the same stage and key."""
    bucket.workspace(KEYS).put_checkpoint(KEY, a_folder(tmp_path / "half", adapter_txt="half"), 5)
    (place,) = {name.rsplit("/", 2)[0] for name in bucket.names("runs/") if name.endswith("adapter.txt")}
    bucket.put(f"runs/train/{KEY}/files/adapter.txt", read(bucket, f"{place}/files/adapter.txt"))
    bucket.put(MANIFEST, read(bucket, f"{place}/manifest.json"))
    with pytest.raises(StageError, match="modified or moved after it was signed"):
        bucket.workspace(KEYS).fetch(Stage.TRAIN, KEY, tmp_path / "in")


def test_training_resumes_from_signed_checkpoints_only(bucket: Bucket, tmp_path: Path) -> None:
    """An unsigned newer one is skipped, but kept: it may be from a pod without the key."""
    bucket.workspace(KEYS).put_checkpoint(KEY, a_folder(tmp_path / "own", state_json="own"), 5)
    bucket.workspace().put_checkpoint(KEY, a_folder(tmp_path / "other", state_json="other"), 50)
    assert bucket.workspace(KEYS).latest_checkpoint(KEY, tmp_path / "in") == 5
    assert (tmp_path / "in" / "state.json").read_text() == "own"


def test_enabling_or_rotating_a_key_recomputes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """Outputs before `trusted-before`, and those of the previous key, are accepted; later unsigned ones are not."""
    committed(bucket, tmp_path / "before", None)
    now = datetime.now(UTC) + timedelta(minutes=1)
    turned_on = ManifestKeys(KEYS.key, trusted_before=now)
    assert bucket.workspace(turned_on).manifest(Stage.TRAIN, KEY) is not None
    late = ManifestKeys(KEYS.key, trusted_before=now - timedelta(hours=1))
    assert bucket.workspace(late).manifest(Stage.TRAIN, KEY) is None

    committed(bucket, tmp_path / "signed", KEYS)
    assert bucket.workspace(ManifestKeys(OTHER.key, previous=KEYS.key)).manifest(Stage.TRAIN, KEY) is not None
    assert bucket.workspace(OTHER).manifest(Stage.TRAIN, KEY) is None


def mounted(folder: Path, **files: str) -> Credentials:
    """Return credentials with a Secret for manifests; `_` in the name of a file stands for `-`."""
    (folder / "manifest-key").mkdir()
    for name, text in files.items():
        (folder / "manifest-key" / name.replace("_", "-")).write_text(text)
    return Credentials(folder)


def test_the_keys_are_read_from_their_secret_and_redacted(tmp_path: Path) -> None:
    """Each file has its meaning, and logs and reports are redacted for both keys."""
    credentials = mounted(tmp_path, key="n" * 32 + "\n", previous_key="p" * 40, trusted_before="2026-11-01T00:00:00Z\n")
    keys = credentials.manifest_keys()
    assert keys == ManifestKeys(b"n" * 32, b"p" * 40, datetime(2026, 11, 1, tzinfo=UTC))
    assert "nnn" not in repr(keys)
    assert "ppp" not in repr(keys)
    assert {"n" * 32, "p" * 40} <= set(credentials.values())


def test_a_stage_signs_with_the_mounted_secret(bucket: Bucket, tmp_path: Path) -> None:
    """From the mounted files to the manifest."""
    (tmp_path / "secrets").mkdir()
    credentials = mounted(tmp_path / "secrets", key=KEYS.key.decode())
    for name, text in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        (tmp_path / "secrets" / "workspace").mkdir(exist_ok=True)
        (tmp_path / "secrets" / "workspace" / name).write_text(text)
    spec = ApiWorkspace(uri=f"s3://{bucket.name}/runs/", endpoint=bucket.url, region="us-east-1")
    Workspace.open(spec, credentials).commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="x"), FACTS)
    assert bucket.workspace(KEYS).manifest(Stage.TRAIN, KEY) is not None
    assert bucket.workspace(OTHER).manifest(Stage.TRAIN, KEY) is None


def test_without_a_secret_nothing_is_signed(tmp_path: Path) -> None:
    """The key is optional."""
    assert Credentials(tmp_path).manifest_keys() is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "expected the key key in the Secret of spec.workspace.manifestKeySecretRef"),
        ({"key": "short"}, "expected at least 32 characters in key, found 5"),
        ({"key": "n" * 32, "previous_key": "short"}, "expected at least 32 characters in previous-key, found 5"),
        ({"key": "n" * 32, "trusted_before": "2026-11-01"}, "expected a time with time zone"),
        ({"key": "n" * 32, "trusted_before": "yesterday"}, "expected a time with time zone"),
        ({"key": "n" * 32, "trusted_before": "9999-11-01T00:00:00Z"}, "expected a time in the past"),
    ],
)
def test_an_unusable_secret_is_reported(tmp_path: Path, files: dict[str, str], message: str) -> None:
    """No stage continues without the requested signatures."""
    with pytest.raises(StageError, match=message) as error:
        mounted(tmp_path, **files).manifest_keys()
    assert error.value.reason == Reason.CREDENTIALS_MISSING

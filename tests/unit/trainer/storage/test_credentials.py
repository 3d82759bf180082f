"""Mounted Secrets: values, missing keys, and no leaks."""

from pathlib import Path

import pytest
from tunemill_api.failures import Reason
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.credentials import Credentials


def mounted(folder: Path, **files: str) -> Credentials:
    """Return credentials with files; `purpose__NAME` is the file NAME of a purpose, `_` in a purpose stands for `-`."""
    for name, text in files.items():
        purpose, _, key = name.partition("__")
        path = folder / purpose.replace("_", "-") / key
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return Credentials(folder)


def test_a_trailing_newline_is_removed(tmp_path: Path) -> None:
    """Secrets created from files work."""
    credentials = mounted(
        tmp_path, dataset__AWS_ACCESS_KEY_ID="AKIA\n", dataset__AWS_SECRET_ACCESS_KEY="s\n", hub_read__token="hf_x\n"
    )
    found = credentials.s3("dataset")
    assert found is not None
    assert (found.access_key_id, found.secret_access_key, found.session_token) == ("AKIA", "s", None)
    assert credentials.hub_token("hub-read") == "hf_x"


def test_without_a_secret_the_identity_of_pod_or_machine_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing folder is no error, and a local run uses HF_TOKEN."""
    assert Credentials(tmp_path).s3("workspace") is None
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert Credentials(tmp_path).hub_token("hub-write") is None
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert Credentials(tmp_path).hub_token("hub-write") == "hf_mine"


@pytest.mark.parametrize(
    ("files", "field", "key"),
    [
        ({"dataset__AWS_ACCESS_KEY_ID": "AKIA"}, "spec.dataset.credentialsSecretRef", "AWS_SECRET_ACCESS_KEY"),
        ({"hub_write__other": "x"}, "spec.publish.tokenSecretRef", "token"),
        ({"hub_write__token": " \n"}, "spec.publish.tokenSecretRef", "token"),
    ],
)
def test_a_secret_that_lacks_a_key_is_named(tmp_path: Path, files: dict[str, str], field: str, key: str) -> None:
    """The message has the field and the missing key, and no values."""
    credentials = mounted(tmp_path, **files)
    with pytest.raises(StageError, match=key) as error:
        credentials.s3("dataset") if "dataset" in field else credentials.hub_token("hub-write")
    assert error.value.reason == Reason.CREDENTIALS_MISSING
    assert field in error.value.message
    assert "AKIA" not in error.value.message


def test_the_signing_key_is_read_from_its_secret(tmp_path: Path) -> None:
    """Its content is not changed, and a missing key is reported with the field. No environment variable replaces it."""
    pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"
    with pytest.raises(StageError, match=r"spec\.publish\.signing\.keySecretRef") as error:
        Credentials(tmp_path).signing_key()
    assert error.value.reason == Reason.CREDENTIALS_MISSING
    (tmp_path / "signing").mkdir()
    (tmp_path / "signing" / "key.pem").write_text(pem + "\n")
    assert Credentials(tmp_path).signing_key() == pem
    assert Credentials(tmp_path).values() == [pem]


def test_credentials_are_not_in_a_repr(tmp_path: Path) -> None:
    """A log line with the object leaks nothing."""
    credentials = mounted(
        tmp_path,
        dataset__AWS_ACCESS_KEY_ID="AKIA",
        dataset__AWS_SECRET_ACCESS_KEY="hush",
        dataset__AWS_SESSION_TOKEN="t0k",
    )
    shown = repr(credentials.s3("dataset"))
    assert not any(secret in shown for secret in ("AKIA", "hush", "t0k"))

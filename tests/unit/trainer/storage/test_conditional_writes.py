"""A workspace needs a server with conditional writes, and a conflict is retried."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from trainer.storage.buckets import a_folder
from trainer.storage.stores import a_store
from tunemill_api.failures import Reason
from tunemill_api.stage_report import Stage
from tunemill_api.status import TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage import s3

KEY = "00112233aabbccdd"
FACTS = TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")
CONFLICT = ("409 Conflict", "ConditionalRequestConflict")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without a delay."""
    monkeypatch.setattr(s3, "WAITS_SECONDS", (0.0, 0.0, 0.0))


@pytest.mark.parametrize("refusal", [None, ("501 Not Implemented", "NotImplemented")])
def test_a_server_without_conditional_writes_is_refused(refusal: tuple[str, str] | None) -> None:
    """At the first use and with a remedy, whether the server ignores the header or rejects it."""
    with a_store(lambda: refusal) as bucket:
        with pytest.raises(StageError, match=r"spec\.workspace\.uri does not support If-None-Match") as error:
            bucket.workspace().check_writable()
        assert bucket.names() == [], "the probe leaves nothing"
    assert error.value.reason == Reason.INVALID_SPEC
    assert "Set spec.workspace" in error.value.remedy


def test_a_conflict_does_not_mean_that_the_output_exists(tmp_path: Path) -> None:
    """After a conflict, the writer retries its manifest instead of discarding its files."""
    conflicts = iter([CONFLICT, CONFLICT, None])
    with a_store(lambda: next(conflicts)) as bucket:
        workspace = bucket.workspace()
        committed = workspace.commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), FACTS)
        assert workspace.uri(Stage.TRAIN, KEY).endswith(committed.attempt)
        bucket.workspace().fetch(Stage.TRAIN, KEY, tmp_path / "in")
    assert (tmp_path / "in" / "a.txt").read_text() == "one"


def test_a_persistent_conflict_is_a_retryable_failure(tmp_path: Path) -> None:
    """The stage does not wait forever, and does not succeed."""

    def conflicts() -> Iterator[tuple[str, str]]:
        for _ in range(4):
            yield CONFLICT

    answers = conflicts()
    with a_store(lambda: next(answers)) as bucket:
        with pytest.raises(StageError, match="ConditionalRequestConflict") as error:
            bucket.workspace().commit(Stage.TRAIN, KEY, a_folder(tmp_path / "out", a_txt="one"), FACTS)
        assert bucket.workspace().manifest(Stage.TRAIN, KEY) is None
    assert error.value.reason == Reason.S3_UNREACHABLE

"""Shared outputs in a workspace are kept as long as a run refers to them."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from property.builders import a_spec, parsed
from trainer.storage.buckets import Bucket, a_bucket, a_folder
from tunemill_api import keys
from tunemill_api.failures import Reason
from tunemill_api.run_spec import RunSpec
from tunemill_api.stage_report import Stage
from tunemill_api.status import SuiteDataFacts, TrainedFacts
from tunemill_trainer.errors import StageError
from tunemill_trainer.storage import references
from tunemill_trainer.storage.workspace import Workspace

PREPARED = "00112233aabbccdd"
FACTS = TrainedFacts(steps=1, loss="0.1", train_seconds=1, device="cpu", adapter="s3://there")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    """An empty bucket."""
    with a_bucket() as empty:
        yield empty


def a_run(run_id: str, name: str = "support", keep: int = 2, uid: str = "", cluster: str = "", **spec: Any) -> RunSpec:
    """Return a run of an object."""
    parsed_spec = parsed(a_spec(workspace={"keepRuns": keep}, **spec))
    return RunSpec(namespace="team-a", name=name, uid=uid, cluster=cluster, run_id=run_id, spec=parsed_spec)


def train_key(run: RunSpec) -> str:
    """Return the key of the run's train output."""
    return keys.train_key(PREPARED, run.spec)


def work(bucket: Bucket, run: RunSpec, folder: Path) -> None:
    """Do what prepare, train and publish of the run do in the workspace."""
    workspace = bucket.workspace()
    references.refer(workspace, run, PREPARED)
    for stage, key in ((Stage.PREPARE, PREPARED), (Stage.TRAIN, train_key(run))):
        if workspace.manifest(stage, key) is None:
            workspace.commit(stage, key, folder, FACTS)


def is_there(bucket: Bucket, run: RunSpec) -> bool:
    """Return whether the run's train output is in the workspace and complete."""
    return bucket.workspace().manifest(Stage.TRAIN, train_key(run)) is not None


class Clock:
    """Gives every object that is listed the time at which it was written last, in the order of writing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._written: dict[str, int] = {}
        ticks = itertools.count()
        mark, marks = Workspace.mark, Workspace.marks

        def counted(workspace: Workspace, path: str) -> None:
            self._written[path] = next(ticks)
            mark(workspace, path)

        def timed(workspace: Workspace, path: str) -> dict[str, datetime]:
            noon = datetime(2026, 11, 21, 12, tzinfo=UTC)
            return {name: noon + timedelta(seconds=self._written[name]) for name in marks(workspace, path)}

        monkeypatch.setattr(Workspace, "mark", counted)
        monkeypatch.setattr(Workspace, "marks", timed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """S3 has a time resolution of a second; with this clock, the tests do not wait."""
    return Clock(monkeypatch)


@pytest.mark.usefixtures("clock")
def test_only_the_last_runs_of_an_object_keep_their_outputs(bucket: Bucket, tmp_path: Path) -> None:
    """Older outputs are removed with all files and references. Shared inputs are kept."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    runs = [a_run(f"run{i}", training={"learningRate": f"{i}e-4"}) for i in (1, 2, 3)]
    for run in runs:
        work(bucket, run, folder)
        bucket.workspace().put_checkpoint(train_key(run), folder, 5)
        references.prune(bucket.workspace(), run)
    assert [is_there(bucket, run) for run in runs] == [False, True, True]
    assert bucket.names(f"runs/train/{train_key(runs[0])}") == []
    assert bucket.workspace().manifest(Stage.PREPARE, PREPARED) is not None
    assert {name.split("/")[6] for name in bucket.names("runs/runs/")} == {"run2", "run3"}


@pytest.mark.usefixtures("clock")
def test_the_rows_of_a_suite_are_removed_with_its_last_run(bucket: Bucket, tmp_path: Path) -> None:
    """With the base model's results on them."""
    folder, workspace = a_folder(tmp_path / "out", a_txt="one"), bucket.workspace()
    suite = SuiteDataFacts(name="chat", key="0123456789abcdef", rows=9)
    runs = [a_run(f"run{at}", keep=1) for at in (1, 2, 3)]
    of_base = keys.base_evaluation_key(suite.key, runs[0].spec)
    for run, suites in zip(runs, ([suite], [suite], []), strict=True):
        references.refer(workspace, run, PREPARED, suites)
        for stage, key in ((references.SUITES, suite.key), (references.BASE_REPLIES, of_base)):
            workspace.commit(stage, key, folder, FACTS)
        references.prune(workspace, run)
        kept = bool(suites)
        assert (workspace.manifest(references.SUITES, suite.key) is not None) is kept
        assert (workspace.manifest(references.BASE_REPLIES, of_base) is not None) is kept


@pytest.mark.usefixtures("clock")
def test_outputs_with_references_of_another_object_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    """Until that object no longer needs them either."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    shared, theirs = a_run("run1", keep=1), a_run("run1", name="other", keep=1)
    work(bucket, shared, folder)
    work(bucket, theirs, folder)
    work(bucket, later := a_run("run2", keep=1, training={"epochs": 2}), folder)
    references.prune(bucket.workspace(), later)
    assert is_there(bucket, theirs)
    work(bucket, last := a_run("run9", name="other", keep=1, training={"epochs": 9}), folder)
    references.prune(bucket.workspace(), last)
    assert not is_there(bucket, theirs)
    assert is_there(bucket, later)


@pytest.mark.usefixtures("clock")
def test_a_repeated_run_counts_as_recent(bucket: Bucket, tmp_path: Path) -> None:
    """A run that is requested again is among the last runs."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    first, second, third = (a_run(f"run{i}", training={"epochs": i}) for i in (1, 2, 3))
    for run in (first, second, first, third):
        work(bucket, run, folder)
    references.prune(bucket.workspace(), third)
    assert [is_there(bucket, run) for run in (first, second, third)] == [True, False, True]


def test_outputs_without_any_reference_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    """Outputs of older versions, and other objects below the prefix, are not touched."""
    folder, run = a_folder(tmp_path / "out", a_txt="one"), a_run("run1")
    bucket.workspace().commit(Stage.TRAIN, "foreign", folder, FACTS)
    references.prune(bucket.workspace(), run)
    work(bucket, run, folder)
    references.prune(bucket.workspace(), run)
    assert bucket.workspace().manifest(Stage.TRAIN, "foreign") is not None


@pytest.mark.parametrize("clusters", [("", ""), ("prod", "dev"), ("prod", "")])
@pytest.mark.usefixtures("clock")
def test_objects_of_the_same_name_in_another_cluster_keep_their_outputs(
    bucket: Bucket, tmp_path: Path, clusters: tuple[str, str]
) -> None:
    """Clusters that share a workspace remove outputs of their own objects only."""
    folder, (prod, dev) = a_folder(tmp_path / "out", a_txt="one"), clusters
    theirs = a_run("run0", keep=1, uid="uid-of-prod", cluster=prod, training={"epochs": 9})
    work(bucket, theirs, folder)
    ours = [
        a_run(f"run{i}", keep=1, uid="uid-of-dev", cluster=dev, training={"learningRate": f"{i}e-4"}) for i in (1, 2)
    ]
    for run in ours:
        work(bucket, run, folder)
        references.prune(bucket.workspace(), run)
    assert is_there(bucket, theirs)
    assert [is_there(bucket, run) for run in ours] == [False, True]


@pytest.mark.usefixtures("clock")
def test_local_runs_and_clusters_keep_their_outputs(bucket: Bucket, tmp_path: Path) -> None:
    """A local run of the same manifest has no uid."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    laptop, cluster = a_run("support", keep=1, training={"epochs": 9}), a_run("run1", keep=1, uid="uid-of-prod")
    for run in (laptop, cluster):
        work(bucket, run, folder)
        references.prune(bucket.workspace(), run)
    assert is_there(bucket, laptop)
    references.prune(bucket.workspace(), laptop)
    assert is_there(bucket, cluster)


@pytest.mark.parametrize(("cluster", "kept"), [("prod", False), ("", True)])
@pytest.mark.usefixtures("clock")
def test_in_a_named_cluster_a_recreated_object_removes_old_runs(
    bucket: Bucket, tmp_path: Path, cluster: str, kept: bool
) -> None:
    """Without a cluster name, an object that GitOps creates again is not known to be the same object."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    before = a_run("run1", keep=1, uid="uid-1", cluster=cluster, training={"epochs": 9})
    after = a_run("run2", keep=1, uid="uid-2", cluster=cluster)
    for run in (before, after):
        work(bucket, run, folder)
    references.prune(bucket.workspace(), after)
    assert is_there(bucket, before) == kept
    assert is_there(bucket, after)


@pytest.mark.usefixtures("clock")
def test_references_of_older_versions_are_kept(bucket: Bucket, tmp_path: Path) -> None:
    """References without cluster and uid may be of any object."""
    folder, older = a_folder(tmp_path / "out", a_txt="one"), a_run("run1", keep=1, training={"epochs": 9})
    bucket.workspace().commit(Stage.TRAIN, train_key(older), folder, FACTS)
    reference = f"runs/team-a/support/run1/train/{train_key(older)}"
    bucket.workspace().mark(reference)
    for run in (a_run("run1", keep=1, uid="uid-1", cluster="prod"), a_run("run2", keep=1, uid="uid-1", cluster="prod")):
        work(bucket, run, folder)
        references.prune(bucket.workspace(), run)
    assert is_there(bucket, older)
    assert reference in bucket.workspace().marks("runs/")


@pytest.mark.usefixtures("clock")
def test_an_invalid_reference_removes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """An object that another user writes among the references cannot cause other removals."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    theirs = a_run("run1", name="other", uid="uid-other")
    work(bucket, theirs, folder)
    bucket.workspace().mark("runs/@/team-a/support/uid-1/run1/runs/@")
    for run in (a_run("run1", keep=1, uid="uid-1"), a_run("run2", keep=1, uid="uid-1", training={"epochs": 9})):
        work(bucket, run, folder)
    references.prune(bucket.workspace(), run)
    assert any(name.startswith("runs/@/team-a/other/") for name in bucket.workspace().marks("runs/"))


def test_a_missing_permission_to_delete_is_no_failure(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A published run does not fail, and the next one tries again."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    runs = [a_run(f"run{i}", keep=1, training={"epochs": i}) for i in (1, 2)]
    for run in runs:
        work(bucket, run, folder)

    def forbid(*_: object) -> None:
        raise StageError(Reason.S3_ACCESS_DENIED, "no s3:DeleteObject")

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, "remove", forbid)
        references.prune(bucket.workspace(), runs[1])
    assert "no s3:DeleteObject" in caplog.text
    references.prune(bucket.workspace(), runs[1])
    assert not is_there(bucket, runs[0])


@pytest.mark.slow
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # every example has an S3 server of its own
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(1, 3), st.booleans()), min_size=1, max_size=14
    )
)
def test_no_order_of_runs_removes_outputs_in_use(tmp_path: Path, history: list[tuple[str, int, int, bool]]) -> None:
    """For two objects with overlapping specs: after every step, the last keepRuns runs of each are complete."""
    folder = a_folder(tmp_path / "out", a_txt="one")
    last: dict[str, list[RunSpec]] = {"a": [], "b": []}
    with a_bucket() as bucket, pytest.MonkeyPatch.context() as monkeypatch:
        Clock(monkeypatch)
        for name, epochs, keep, published in history:
            run = a_run(f"run{epochs}", name=name, keep=keep, training={"epochs": epochs})
            last[name] = [run, *(item for item in last[name] if item.run_id != run.run_id)]
            work(bucket, run, folder)
            if published:
                references.prune(bucket.workspace(), run)
                last[name] = last[name][:keep]
            assert all(is_there(bucket, item) for runs in last.values() for item in runs)

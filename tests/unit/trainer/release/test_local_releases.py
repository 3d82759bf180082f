"""Releases in a local folder: verified before the branch moves, with one release per branch and tag."""

from pathlib import Path

import pytest
from tunemill_trainer.release.local_releases import LocalReleases, path_of
from tunemill_trainer.release.push import CONTENTS


def made(folder: Path, text: str) -> Path:
    """Write the files of a release."""
    folder.mkdir(exist_ok=True)
    (folder / CONTENTS).write_text(text)
    (folder / "nested").mkdir(exist_ok=True)
    (folder / "nested" / "weights").write_text(text)
    return folder


def put(releases: LocalReleases, folder: Path, branch: str = "main", prove=lambda _: None) -> str:
    """Publish a folder."""
    return releases.put_verified(folder, branch, "candidate", "message", prove)


@pytest.fixture
def releases(tmp_path: Path) -> LocalReleases:
    """An empty folder for releases."""
    found = LocalReleases(tmp_path / "result")
    found.create(private=True)
    return found


def test_a_branch_has_the_last_verified_release(releases: LocalReleases, tmp_path: Path):
    """The same files are the same release. Older ones are removed unless a tag points at them."""
    first = put(releases, made(tmp_path / "made", "1"))
    assert put(releases, made(tmp_path / "made", "1")) == first
    releases.tag("v1", first)
    second = put(releases, made(tmp_path / "made", "2"))
    third = put(releases, made(tmp_path / "made", "3"))
    assert (tmp_path / "result" / "main" / "nested" / "weights").read_text() == "3"
    assert path_of(tmp_path / "result", "v1").joinpath(CONTENTS).read_text() == "1"
    kept = {path.name for path in (tmp_path / "result" / "releases").iterdir()}
    assert kept == {first, third}
    assert second not in kept
    assert (releases.has_release(third, "main"), releases.has_release(first, "main")) == (True, False)


def test_a_failed_verification_changes_nothing(releases: LocalReleases, tmp_path: Path):
    """The branch is not moved, and no files are left."""
    first = put(releases, made(tmp_path / "made", "1"))

    def fail(revision: str) -> None:
        assert releases.download(revision, tmp_path / "copy").joinpath(CONTENTS).read_text() == "2"
        raise ValueError("not the same")

    with pytest.raises(ValueError, match="not the same"):
        put(releases, made(tmp_path / "made", "2"), prove=fail)
    assert releases.read(CONTENTS, "main", 10) == b"1"
    assert [path.name for path in (tmp_path / "result" / "releases").iterdir()] == [first]


def test_drafts_are_separate_until_they_are_discarded(releases: LocalReleases, tmp_path: Path):
    """A branch with a slash is one link, too."""
    first = put(releases, made(tmp_path / "made", "1"))
    put(releases, made(tmp_path / "made", "2"), "tunemill/draft")
    assert releases.read(CONTENTS, "tunemill/draft", 10) == b"2"
    releases.discard_branch("tunemill/draft")
    releases.discard_branch("was-never-there")
    assert releases.read(CONTENTS, "tunemill/draft", 10) is None
    assert [path.name for path in (tmp_path / "result" / "releases").iterdir()] == [first]


def test_other_files_are_not_replaced(releases: LocalReleases, tmp_path: Path):
    """A folder with the name of the branch is not a link of an earlier release."""
    (tmp_path / "result" / "main").mkdir()
    with pytest.raises(Exception, match="to be a symbolic link of an earlier release"):
        put(releases, made(tmp_path / "made", "1"))

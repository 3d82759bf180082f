"""The shared model cache: the order of removal, and models in use."""

import os
import subprocess
import sys
from pathlib import Path

from tunemill_trainer.storage.model_cache import ModelCache

KIB = 1024


def a_revision(cache: Path, model: str, commit: str, *, used: int, blobs: dict[str, int]) -> None:
    """Put a revision into the cache as huggingface_hub does: links into a folder of blobs.

    Args:
        cache: the folder.
        model: owner/name.
        commit: a letter that the commit consists of.
        used: when, in seconds since 1970.
        blobs: name → KiB.
    """
    folder = cache / f"models--{model.replace('/', '--')}"
    snapshot = folder / "snapshots" / (commit * 40)
    for path in (folder / "blobs", folder / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    for name, size in blobs.items():
        (folder / "blobs" / name).write_bytes(bytes(size * KIB))
        (snapshot / f"{name}.safetensors").symlink_to(folder / "blobs" / name)
    mark = cache / ".tunemill" / f"{model.replace('/', '--')}@{commit * 40}"
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    os.utime(mark, (used, used))


def revisions(cache: Path) -> set[str]:
    """What is there: model and letter of the commit."""
    return {f"{path.parents[1].name.split('--')[-1]}@{path.name[0]}" for path in cache.glob("models--*/snapshots/*")}


def test_the_least_recently_used_revision_is_removed_first(tmp_path: Path):
    """No more is removed than necessary, and files that other revisions share are kept."""
    a_revision(tmp_path, "acme/one", "a", used=300, blobs={"shared": 40, "own-a": 40})
    a_revision(tmp_path, "acme/one", "b", used=100, blobs={"shared": 40, "own-b": 40})
    a_revision(tmp_path, "acme/two", "c", used=200, blobs={"own-c": 40})
    ModelCache(tmp_path, 200 * KIB).make_room()
    assert revisions(tmp_path) == {"one@a", "one@b", "two@c"}
    ModelCache(tmp_path, 130 * KIB).make_room()
    assert revisions(tmp_path) == {"one@a", "two@c"}
    assert (tmp_path / "models--acme--one" / "blobs" / "shared").exists()
    ModelCache(tmp_path, 80 * KIB).make_room()
    assert revisions(tmp_path) == {"one@a"}


def test_the_model_to_be_downloaded_is_kept(tmp_path: Path):
    """A pod does not remove the model that it is going to load."""
    a_revision(tmp_path, "acme/one", "a", used=1, blobs={"own-a": 40})
    a_revision(tmp_path, "acme/two", "b", used=2, blobs={"own-b": 40})
    ModelCache(tmp_path, 40 * KIB).make_room("acme/one", "a" * 40)
    assert revisions(tmp_path) == {"one@a"}


def test_a_model_in_use_is_not_removed(tmp_path: Path):
    """It is kept, even above the limit, until its pod ends, including a pod that is killed."""
    a_revision(tmp_path, "acme/one", "a", used=1, blobs={"own-a": 40})
    code = (
        "import sys; from pathlib import Path; from tunemill_trainer.storage.model_cache import ModelCache; "
        f"ModelCache(Path({str(tmp_path)!r}), 1).hold('acme/one', {'a' * 40!r}); print('held', flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as pod:
        assert pod.stdout is not None
        assert pod.stdout.readline() == "held\n"
        ModelCache(tmp_path, 1).make_room()
        assert revisions(tmp_path) == {"one@a"}
        pod.kill()
    ModelCache(tmp_path, 1).make_room()
    assert revisions(tmp_path) == set()


def test_a_use_updates_the_order_of_removal(tmp_path: Path):
    """`hold` marks the revision as used now."""
    a_revision(tmp_path, "acme/one", "a", used=1, blobs={"own-a": 40})
    a_revision(tmp_path, "acme/one", "b", used=2, blobs={"own-b": 40})
    code = (
        "from pathlib import Path; from tunemill_trainer.storage.model_cache import ModelCache; "
        f"ModelCache(Path({str(tmp_path)!r}), 1).hold('acme/one', {'a' * 40!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    ModelCache(tmp_path, 40 * KIB).make_room()
    assert revisions(tmp_path) == {"one@a"}

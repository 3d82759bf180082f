"""A cache of base models on a volume that several pods share, with a size limit and locks for models in use.

The folder has the cache of huggingface_hub, and in `.tunemill` a lock file per model and a marker file per revision.
The modification time of a marker is the time of the last use: many volumes do not record access times.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tunemill_api import compute as api
from tunemill_api.constants import MODEL_CACHE_PATH
from tunemill_api.scalars import quantity_value

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo

_OURS = ".tunemill"

_log = logging.getLogger(__name__)


class ModelCache:
    """The cache in a folder.

    Args:
        folder: the folder on the shared volume.
        most_bytes: the size limit. While a model is downloaded, the cache may exceed it by that model.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        (folder / _OURS).mkdir(parents=True, exist_ok=True)

    @classmethod
    def mounted(cls, settings: api.ModelCache) -> Self | None:
        """Return the cache that is mounted in this pod; None if there is none, as in a local run."""
        folder = Path(MODEL_CACHE_PATH)
        return cls(folder, int(quantity_value(settings.max_size))) if settings.claim_name and folder.is_dir() else None

    def hold(self, model_id: str, commit: str) -> None:
        """Lock a model against removal by any pod until this process ends, and update the last use of a revision."""
        # Never closed: the lock is released when the process ends.
        lock = os.open(self._lock(model_id), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_SH)
        self._mark(model_id, commit).touch()

    def make_room(self, model_id: str = "", commit: str = "") -> None:
        """Remove the least recently used revisions until the rest is within the limit; skip models in use.

        Args:
            model_id: a model that is about to be downloaded.
            commit: its revision, which is not removed.
        """
        # Imported here, because huggingface_hub reads the path of its cache, which `runner` sets, at import.
        from huggingface_hub import scan_cache_dir

        found = scan_cache_dir(self._folder)
        size = found.size_on_disk
        revisions = [(repo, revision) for repo in found.repos for revision in repo.revisions]
        for repo, revision in sorted(revisions, key=lambda pair: self._used_at(*pair)):
            if size <= self._most_bytes:
                return
            if (repo.repo_id, revision.commit_hash) == (model_id, commit):
                continue
            with self._alone(repo.repo_id) as alone:
                if not alone:
                    continue
                # Files that other revisions share are kept.
                strategy = scan_cache_dir(self._folder).delete_revisions(revision.commit_hash)
                strategy.execute()
                self._mark(repo.repo_id, revision.commit_hash).unlink(missing_ok=True)
            size -= strategy.expected_freed_size
            _log.info("removed %s@%s from the model cache", repo.repo_id, revision.commit_hash)

    def _used_at(self, repo: CachedRepoInfo, revision: CachedRevisionInfo) -> float:
        mark = self._mark(repo.repo_id, revision.commit_hash)
        return mark.stat().st_mtime if mark.exists() else revision.last_modified

    @contextmanager
    def _alone(self, model_id: str) -> Iterator[bool]:
        """Lock a model exclusively; yields False if another pod uses it."""
        with self._lock(model_id).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _lock(self, model_id: str) -> Path:
        return self._folder / _OURS / f"{model_id.replace('/', '--')}.lock"

    def _mark(self, model_id: str, commit: str) -> Path:
        return self._folder / _OURS / f"{model_id.replace('/', '--')}@{commit}"

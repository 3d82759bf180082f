"""A cache of base models on a volume that several pods share: bounded, and never emptied under a pod that reads it.

Below the folder lies what huggingface_hub keeps, and in `.tunemill` a lock for each model and a mark for each revision,
whose time of change is when the revision was used last: many volumes do not keep the time of reading.
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
        folder: on the shared volume.
        most_bytes: what it may hold when a model has been fetched; until then, one model more.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        (folder / _OURS).mkdir(parents=True, exist_ok=True)

    @classmethod
    def mounted(cls, wish: api.ModelCache) -> Self | None:
        """Return the cache of this pod; None when there is none, as on one machine."""
        folder = Path(MODEL_CACHE_PATH)
        return cls(folder, int(quantity_value(wish.max_size))) if wish.claim_name and folder.is_dir() else None

    def hold(self, model_id: str, commit: str) -> None:
        """Keep every pod from removing a revision of the model until this process ends, and mark one as used now."""
        # Never closed: the lock ends with the process, however it ends.
        lock = os.open(self._lock(model_id), os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(lock, fcntl.LOCK_SH)
        self._mark(model_id, commit).touch()

    def make_room(self, model_id: str = "", commit: str = "") -> None:
        """Remove the revisions that were used longest ago until the rest fits; never one of a model that is held.

        Args:
            model_id: a model that is about to be fetched.
            commit: its revision, which stays.
        """
        # Imported late: it reads where its own cache lies at its import, and `runner` has to say so before.
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
                # What other revisions share stays.
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
        """Lock a model against all other pods; False when one of them holds it."""
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

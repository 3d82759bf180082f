"""Checkpoints between the trainer's folder and the workspace."""

import json
import logging
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tunemill_api.failures import Reason

from tunemill_trainer.errors import StageError
from tunemill_trainer.storage.workspace import Workspace

_CLOCK = "tunemill.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where training goes on.

    Attributes:
        folder: as transformers.Trainer wrote it.
        step: the optimizer steps that were done.
        train_seconds: that all attempts before spent training.
    """

    folder: Path
    step: int
    train_seconds: float


def newest(workspace: Workspace, key: str, folder: Path) -> Checkpoint | None:
    """Download the newest whole checkpoint of a training into `folder`; None when it starts at the beginning."""
    shutil.rmtree(folder, ignore_errors=True)
    incoming = folder / "incoming"
    step = workspace.latest_checkpoint(key, incoming)
    if step is None:
        return None
    # The name that transformers.Trainer gives, so that it counts and removes it with its own.
    return Checkpoint(incoming.rename(folder / f"checkpoint-{step}"), step, read_clock(folder / f"checkpoint-{step}"))


def read_clock(checkpoint: Path) -> float:
    """Return the seconds that were spent training up to a checkpoint."""
    return float(json.loads((checkpoint / _CLOCK).read_text())["trainSeconds"])


def write_clock(checkpoint: Path, train_seconds: float) -> None:
    """Keep the seconds that were spent training with the checkpoint."""
    (checkpoint / _CLOCK).write_text(json.dumps({"trainSeconds": round(train_seconds, 3)}))


def check_room(folder: Path, checkpoint: int, best: int = 0) -> None:
    """Check that the disk has room for what a run writes, before it has computed anything.

    Args:
        folder: where the checkpoints go.
        checkpoint: bytes of one; there are two while the older one is uploaded.
        best: bytes of the best epoch that is kept beside them; 0 when none is.

    Raises:
        StageError: DiskFull.
    """
    needed, free = 2 * checkpoint + best, shutil.disk_usage(folder).free
    if needed > free:
        kept = f" and the best epoch of {best >> 20} MiB" if best else ""
        raise StageError(
            Reason.DISK_FULL,
            f"the disk of {folder} has {free >> 20} MiB free: expected {needed >> 20} MiB, for two checkpoints of "
            f"{checkpoint >> 20} MiB{kept}",
        )


class Uploads:
    """Uploads checkpoints one after the other while training goes on. Leaving the block waits for the last one."""

    def __init__(self, workspace: Workspace, key: str, keep: int) -> None:
        self._workspace = workspace
        self._key = key
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._latest: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown(wait=True)

    def wait(self) -> None:
        """Wait until nothing is uploaded: then the trainer may remove every checkpoint from its disk."""
        if self._latest is not None:
            self._latest.result()

    def put(self, checkpoint: Path, step: int) -> None:
        """Upload a checkpoint, after the one before."""
        self.wait()
        self._latest = self._pool.submit(self._upload, checkpoint, step)

    def _upload(self, checkpoint: Path, step: int) -> None:
        try:
            self._workspace.put_checkpoint(self._key, checkpoint, step)
            self._workspace.prune_checkpoints(self._key, self._keep)
            _log.info("the checkpoint of step %d is in the workspace", step)
        except StageError as error:
            # The next checkpoint tries again; a server that stays away is found when the adapter is committed.
            _log.warning("the checkpoint of step %d did not get to the workspace: %s", step, error)

"""Downloads and uploads checkpoints, between the trainer's folder and the workspace."""

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
    """A checkpoint to resume from.

    Attributes:
        folder: the folder that transformers.Trainer wrote.
        step: the number of completed optimizer steps.
        train_seconds: training time of all earlier attempts.
    """

    folder: Path
    step: int
    train_seconds: float


def newest(workspace: Workspace, key: str, folder: Path) -> Checkpoint | None:
    """Download the newest complete checkpoint into `folder`; None if there is none."""
    shutil.rmtree(folder, ignore_errors=True)
    incoming = folder / "incoming"
    step = workspace.latest_checkpoint(key, incoming)
    if step is None:
        return None
    # With the name that transformers.Trainer uses, so that save_total_limit includes it.
    incoming.rename(folder / f"checkpoint-{step}")
    return on_disk(folder, step)


def on_disk(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step that `newest` has downloaded into `folder`, also in another process."""
    found = folder / f"checkpoint-{step}"
    return Checkpoint(found, step, read_clock(found))


def read_clock(checkpoint: Path) -> float:
    """Return the training time up to a checkpoint, in seconds."""
    return float(json.loads((checkpoint / _CLOCK).read_text())["trainSeconds"])


def write_clock(checkpoint: Path, train_seconds: float) -> None:
    """Write the training time, in seconds, into the folder of a checkpoint."""
    (checkpoint / _CLOCK).write_text(json.dumps({"trainSeconds": round(train_seconds, 3)}))


def check_disk_space(folder: Path, checkpoint: int, best: int = 0) -> None:
    """Check that the disk has room for the checkpoints of a run, before training starts.

    Args:
        folder: the folder for checkpoints.
        checkpoint: bytes of a checkpoint. There are two of them while the older one is uploaded.
        best: bytes of the best epoch's parameters, which are stored separately; 0 if they are not stored.

    Raises:
        StageError: DiskFull.
    """
    needed, free = 2 * checkpoint + best, shutil.disk_usage(folder).free
    if needed > free:
        also = f" and the best epoch of {best >> 20} MiB" if best else ""
        raise StageError(
            Reason.DISK_FULL,
            f"the disk of {folder} has {free >> 20} MiB free: expected at least {needed >> 20} MiB, for two "
            f"checkpoints of {checkpoint >> 20} MiB{also}",
        )


class Uploads:
    """Uploads checkpoints in the background, one after the other. Leaving the context waits for the last one."""

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
        """Wait for the current upload. Afterwards the trainer may delete any checkpoint from the disk."""
        if self._latest is not None:
            self._latest.result()

    def put(self, checkpoint: Path, step: int) -> None:
        """Start the upload of a checkpoint, after waiting for the previous one."""
        self.wait()
        self._latest = self._pool.submit(self._upload, checkpoint, step)

    def _upload(self, checkpoint: Path, step: int) -> None:
        try:
            self._workspace.put_checkpoint(self._key, checkpoint, step)
            self._workspace.prune_checkpoints(self._key, self._keep)
            _log.info("uploaded the checkpoint of step %d to the workspace", step)
        except StageError as error:
            # Not fatal: the next checkpoint may succeed, and a permanent error fails the commit of the adapter.
            _log.warning("cannot upload the checkpoint of step %d to the workspace: %s", step, error)

"""The small base model of the demo and the tests, created once on this machine and cached by a hash of its sources."""

import hashlib
import io
import json
import shutil
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from tunemill_dev.cluster.home import home, locked
from tunemill_dev.tiny.base import STEPS, make_base

_MADE_BY = ("torch", "transformers", "tokenizers")


def cached_base(kind: str = "gemma2", tags: tuple[str, ...] = (), *, tied: bool = True, steps: int = STEPS) -> Path:
    """Return the folder of a base model. The first call creates it: in seconds for `steps=0`, in minutes otherwise.

    All callers and processes share the folder: copy it before you change a file.

    Args:
        kind: as for `make_base`.
        tags: as for `make_base`.
        tied: as for `make_base`.
        steps: as for `make_base`.
    """
    import torch
    from transformers.utils import logging

    folder = home() / "bases" / f"{kind}-{_key(tags, tied=tied, steps=steps)}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            # With such a small model, two threads wait for each other: for minutes while images are built.
            torch.set_num_threads(1)
            logging.disable_progress_bar()
            with redirect_stdout(io.StringIO()):
                make_base(unfinished, kind, tied=tied, tags=tags, steps=steps)
            unfinished.rename(folder)
    return folder


def _key(tags: tuple[str, ...], *, tied: bool, steps: int) -> str:
    digest = hashlib.sha256()
    for name in ("base.py", "data.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    digest.update(json.dumps([tags, tied, steps, *(version(name) for name in _MADE_BY)]).encode())
    return digest.hexdigest()[:12]

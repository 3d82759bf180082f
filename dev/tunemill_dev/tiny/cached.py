"""Small models that the demo, the tests and benchmarks train on, created once on this machine and cached."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from tunemill_dev.cluster.home import home, locked
from tunemill_dev.tiny import base, data
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
    return cached_model(
        kind,
        lambda folder: make_base(folder, kind, tied=tied, tags=tags, steps=steps),
        sources=(base.__file__, data.__file__),
        settings=(tags, tied, steps),
    )


def cached_model(
    name: str, make: Callable[[Path], object], *, sources: Sequence[str], settings: Sequence[object] = ()
) -> Path:
    """Return the folder of a model. The first call creates it, and a call after a change of its sources again.

    Args:
        name: the start of the folder's name.
        make: writes the model into a folder that does not exist yet.
        sources: the files of the code that makes it.
        settings: what else decides about the result, as JSON values.
    """
    import torch
    from transformers.utils import logging

    folder = home() / "bases" / f"{name}-{_key(sources, settings)}"
    with locked(folder.with_suffix(".lock")):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            # With such a small model, two threads wait for each other: for minutes while images are built.
            torch.set_num_threads(1)
            logging.disable_progress_bar()
            with redirect_stdout(io.StringIO()):
                make(unfinished)
            unfinished.rename(folder)
    return folder


def _key(sources: Sequence[str], settings: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(Path(path).read_bytes())
    digest.update(json.dumps([*settings, *(version(name) for name in _MADE_BY)]).encode())
    return digest.hexdigest()[:12]

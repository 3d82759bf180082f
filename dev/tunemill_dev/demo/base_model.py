"""The demo's base model: made once on this machine, kept under the hash of the code that makes it."""

import hashlib
import io
import shutil
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path

from tunemill_dev import tiny

_MADE_BY = ("torch", "transformers", "tokenizers")


def base_model(home: Path) -> Path:
    """Return the folder of the base model, made in about half a minute when it is not there yet."""
    import torch
    from transformers.utils import logging

    folder = home / "demo" / f"base-{_key()}"
    if not folder.exists():
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        # Two threads of so small a model wait for each other; while images are built beside it, for minutes.
        torch.set_num_threads(1)
        logging.disable_progress_bar()
        with redirect_stdout(io.StringIO()):
            tiny.make_base(unfinished)
        unfinished.rename(folder)
    return folder


def _key() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(tiny.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(" ".join(version(name) for name in _MADE_BY).encode())
    return digest.hexdigest()[:12]

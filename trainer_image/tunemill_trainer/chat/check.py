"""Looks at rows with a base model's tokenizer, as prepare's second pass does, and keeps nothing but the findings."""

import os
import re
import tempfile
from pathlib import Path

from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason

from tunemill_trainer.chat import examples, templates, tokenizer
from tunemill_trainer.chat.examples import Unfit
from tunemill_trainer.data.dataset import Dataset
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import PreparedWriter
from tunemill_trainer.process import cpus
from tunemill_trainer.storage.hub import Hub

_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")


def render_all(dataset: Dataset, base: str, max_length: int) -> int:
    """Add what is wrong with the rendered rows to the dataset's findings, and return how many are of no use.

    Args:
        dataset: the usable rows.
        base: a folder with a base model's tokenizer, or the model's id on the Hub.
        max_length: the longest row that is of use, in tokens.

    Raises:
        StageError: the tokenizer cannot be loaded, or no template fits it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the processes do better
    speaker = tokenizer.load_base(folder_of(base))
    choice, _ = templates.settle(speaker, TokenizerMode.AUTO, dataset.features, [], None)
    fallback = templates.Fallback(choice, speaker, dataset.features)
    unfit = 0

    def take_note(row: Unfit) -> None:
        nonlocal unfit
        # For such a row prepare begins again with our template.
        if not fallback.carries(row.item.row, row.problem):
            unfit += 1
            dataset.findings.add(row.item.row.source, [row.problem])

    with tempfile.TemporaryDirectory() as scratch, PreparedWriter(Path(scratch)) as writer:
        written = examples.write(
            dataset,
            choice,
            writer,
            max_length=max_length,
            on_everything=False,
            workers=cpus.available(),
            unfit=take_note,
            tick=lambda _done: None,
        )
    dataset.findings.merge(written.findings)
    return unfit + written.train.overlong


def folder_of(base: str) -> Path:
    """Return the folder with a base model's tokenizer.

    Args:
        base: a folder, or the model's id on the Hub, from where the tokenizer is downloaded.

    Raises:
        StageError: there is neither.
    """
    if Path(base).is_dir():
        return Path(base)
    if not _HUB_ID.fullmatch(base):
        raise StageError(
            Reason.OBJECT_NOT_FOUND,
            f"no such folder: {base}",
            "Name a folder with a tokenizer.json, or a model on the Hub as owner/name.",
        )
    hub = Hub(os.environ.get("HF_ENDPOINT", ""), os.environ.get("HF_TOKEN"))
    try:
        model = hub.model(base)
        return model.download(model.resolve("main").commit, tokenizer.FILES)
    except StageError as error:
        raise StageError(error.reason, f"{error.message}; there is no such folder either", error.remedy) from error

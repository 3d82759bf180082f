"""Checks rows with a base model's tokenizer, as prepare's second pass does, and keeps only the findings."""

import os
import re
import tempfile
from pathlib import Path

from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason

from tunemill_trainer.bases import catalogue
from tunemill_trainer.chat import examples, templates, tokenizer
from tunemill_trainer.chat.examples import UnusableRow
from tunemill_trainer.data.dataset import Dataset
from tunemill_trainer.errors import StageError
from tunemill_trainer.prepared import PreparedWriter
from tunemill_trainer.process import cpus
from tunemill_trainer.storage.hub import Hub

_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?")


def render_all(dataset: Dataset, base: str, max_length: int) -> int:
    """Add the problems of rendered rows to the dataset's findings, and return the number of unusable rows.

    Args:
        dataset: the usable rows of the first pass.
        base: a folder with a base model's tokenizer, or the model's id on the Hub.
        max_length: the maximum length of a row, in tokens.

    Raises:
        StageError: the tokenizer cannot be loaded, or no chat template works with it.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # worker processes are faster
    folder = folder_of(base)
    base_tokenizer = tokenizer.load_base(folder)
    expected = catalogue.call_format_in(folder, base_tokenizer.chat_template)
    choice, _ = templates.choose_and_extend(
        base_tokenizer, TokenizerMode.AUTO, dataset.features, [], None, expected=expected
    )
    unfit: list[UnusableRow] = []

    with tempfile.TemporaryDirectory() as scratch, PreparedWriter(Path(scratch)) as writer:
        written = examples.write(
            dataset,
            choice,
            writer,
            max_length=max_length,
            loss_on_all=False,
            workers=cpus.available(),
            unfit=unfit.append,
            tick=lambda _done: None,
        )
    dataset.findings.merge(written.findings)
    for row in unfit:
        dataset.findings.add(row.item.row.source, [row.problem])
    return len(unfit) + written.train.overlong


def folder_of(base: str) -> Path:
    """Return the folder with a base model's tokenizer.

    Args:
        base: a folder, or the model's id on the Hub. The tokenizer is then downloaded.

    Raises:
        StageError: neither exists.
    """
    if Path(base).is_dir():
        return Path(base)
    if not _HUB_ID.fullmatch(base):
        raise StageError(
            Reason.OBJECT_NOT_FOUND,
            f"no such folder: {base}",
            "Pass a folder with a tokenizer.json, or the id of a model on the Hub (owner/name).",
        )
    hub = Hub(os.environ.get("HF_ENDPOINT", ""), os.environ.get("HF_TOKEN"))
    try:
        model = hub.model(base)
        return model.download(model.resolve("main").commit, tokenizer.FILES)
    except StageError as error:
        raise StageError(error.reason, f"{error.message}; no such folder exists either", error.remedy) from error

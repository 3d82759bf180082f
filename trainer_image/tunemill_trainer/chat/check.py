"""Checks rows with a base model's tokenizer, as prepare's second pass does, and keeps only the findings."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from tunemill_api.data import TokenizerMode
from tunemill_api.failures import Reason

from tunemill_trainer.bases import catalogue
from tunemill_trainer.bases.found import FoundModel, describe
from tunemill_trainer.chat import examples, templates, tokenizer
from tunemill_trainer.chat.examples import UnusableRow
from tunemill_trainer.chat.templates import Choice
from tunemill_trainer.chat.tokenizer import Tokenizer
from tunemill_trainer.data.dataset import Dataset, Features
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
    _, choice = choose_template(base, dataset.features)
    unfit: list[UnusableRow] = []

    with tempfile.TemporaryDirectory() as scratch, PreparedWriter(Path(scratch)) as writer:
        written = examples.write(
            dataset,
            examples.RowEncoder(choice, max_length),
            writer,
            workers=cpus.available(),
            unfit=unfit.append,
            tick=lambda _done: None,
        )
    dataset.findings.merge(written.findings)
    for row in unfit:
        dataset.findings.add(row.item.row.source, [row.problem])
    return len(unfit) + written.train.overlong


def choose_template(base: str, features: Features) -> tuple[Tokenizer, Choice]:
    """Return a base model's tokenizer, extended as needed, and the chat template that prepare would choose.

    Args:
        base: a folder with a base model's tokenizer, or the model's id on the Hub, from which it is downloaded.
        features: the features of all rows.

    Raises:
        StageError: the tokenizer cannot be loaded, or no chat template works with it.
    """
    folder = folder_of(base)
    base_tokenizer = tokenizer.load_base(folder)
    # A folder with a tokenizer alone is enough to check rows.
    config = _config_of(folder)
    family = catalogue.family_of(config, base_tokenizer.chat_template)
    expected = family.calls if family else None
    choice, _ = templates.choose_and_extend(base_tokenizer, TokenizerMode.AUTO, features, [], None, expected=expected)
    return base_tokenizer, choice


def find_model(base: str) -> FoundModel:
    """Return what is known about a base model, with the template that prepare would choose for rows with tools.

    Args:
        base: a folder with config.json and tokenizer, or the model's id on the Hub, from which they are downloaded.

    Raises:
        StageError: the tokenizer cannot be loaded, or no chat template works with it.
    """
    folder = folder_of(base)
    features = Features(system=True, tools=True, calls=True, responses=True)
    base_tokenizer, choice = choose_template(str(folder), features)
    stops = base_tokenizer.convert_ids_to_tokens(list(choice.ends_of_turns))
    return describe(_config_of(folder), base_tokenizer.chat_template, choice, stops)


def _config_of(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        return tokenizer.read_json(path) if path.is_file() else {}
    except (OSError, ValueError):
        return {}


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

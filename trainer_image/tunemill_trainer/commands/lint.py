"""`tunemill-trainer lint`: looks at data as prepare does, on a laptop, without a network.

tunemill-trainer lint calls.jsonl --json
tunemill-trainer lint train.jsonl --evaluation held-out.jsonl --tokenizer google/gemma-2-2b-it --max-length 1500
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.training import Training

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console, cpus

if TYPE_CHECKING:
    from tunemill_trainer.data.dataset import Dataset
    from tunemill_trainer.data.rows import Tool

_MAX_LENGTH: int = Training.model_fields["max_length"].default


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_reading_options(command)
    command.add_argument(
        "--evaluation", metavar="FILE", type=Path, nargs="+", default=[], help="files with the rows that are held out"
    )
    command.add_argument(
        "--max-tool-ratio",
        metavar="NUMBER",
        type=float,
        default=10.0,
        help="warn when one tool is called so many times as often as another (default: %(default)s)",
    )
    command.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_ID",
        default="",
        help="a base model's folder or its id on the Hub (HF_TOKEN is used): also check lengths and rendering",
    )
    command.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=int,
        help=f"with --tokenizer: the longest row that is of use (default: {_MAX_LENGTH})",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Declare the options that say what is read and how."""
    forms = {form.value.lower(): form.value for form in DatasetFormat}
    command.add_argument(
        "files", metavar="FILE", type=Path, nargs="+", help=".jsonl, .json or .parquet, also gzipped; one set of rows"
    )
    command.add_argument(
        "--format",
        type=lambda text: forms.get(text.lower(), text),
        choices=[*forms.values()],
        default=DatasetFormat.AUTO.value,
        metavar="FORMAT",
        help=f"of the rows: {', '.join(forms.values())} (default: %(default)s)",
    )
    command.add_argument(
        "--tools",
        metavar="FILE",
        type=Path,
        help="a JSON file with the tools of rows that carry none; rows that carry tools must agree with it",
    )


def contract_of(options: argparse.Namespace) -> "tuple[Tool, ...]":
    """Return the tools of --tools.

    Raises:
        StageError: they cannot be used.
        OSError: the file cannot be read.
    """
    from tunemill_trainer.data.tools import given_tools

    return given_tools(_text(options.tools), str(options.tools)) if options.tools else ()


def main(options: argparse.Namespace) -> int:
    """Print the findings and return the exit code: 0 without errors, 65 with, 64 or 66 for wrong options."""
    # Here, so that the stages, which share the parser of the options, do not wait for them.
    from tunemill_trainer.data.check import check
    from tunemill_trainer.data.dataset import ReadOptions
    from tunemill_trainer.data.findings import full_text

    try:
        if options.max_length is not None and not options.tokenizer:
            raise StageError(Reason.INVALID_SPEC, "--max-length counts tokens, which takes a --tokenizer", "Add one.")
        how = ReadOptions(
            DatasetFormat(options.format),
            contract_of(options),
            workers=cpus.available(),
            tool_ratio=options.max_tool_ratio,
        )
        checked = check(options.files, options.evaluation, how, _renderer(options) if options.tokenizer else None)
    except StageError as error:
        print(f"tunemill-trainer lint: {full_text(error)}. {error.failure.remedy}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        return _unreadable(error)
    if checked.files:
        console.show(json.dumps(checked.to_json(), indent=1, ensure_ascii=False) if options.json else checked.to_text())
    for unreadable in checked.unreadable:
        _unreadable(unreadable)
    if checked.unreadable:
        return ExitCode.INPUT_MISSING
    return ExitCode.DATA_WRONG if checked.errors else ExitCode.DONE


def _unreadable(error: OSError) -> int:
    print(f"tunemill-trainer lint: {error.filename} could not be read: {error.strerror}", file=sys.stderr)
    return ExitCode.INPUT_MISSING


def _renderer(options: argparse.Namespace) -> "Callable[[Dataset], int]":
    # Only here: it imports Transformers, which takes longer than everything else that this command does.
    from tunemill_trainer.chat.check import render_all

    return partial(render_all, base=options.tokenizer, max_length=options.max_length or _MAX_LENGTH)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OSError(0, f"not UTF-8: {error.reason}", str(path)) from error

"""`tunemill lint`: checks rows as the prepare stage does, without a network.

tunemill lint calls.jsonl --json
tunemill lint train.jsonl --evaluation held-out.jsonl --tokenizer google/gemma-2-2b-it --max-length 1500
head -1000 calls.jsonl | tunemill lint -
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode, Reason
from tunemill_api.training import Training

from tunemill_trainer.commands import inputs, output
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.option_types import positive_integer, positive_number
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console, cpus
from tunemill_trainer.process.bars import ProgressBar

if TYPE_CHECKING:
    from tunemill_trainer.data.dataset import Dataset
    from tunemill_trainer.data.rows import Tool

_MAX_LENGTH: int = Training.model_fields["max_length"].default


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_reading_options(command)
    command.add_argument(
        "--evaluation",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="files with held-out rows; a training row with the same request as one of them is reported",
    )
    command.add_argument(
        "--validation",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="files with validation rows; a row with the same request as a held-out row, and a training row with that "
        "of one of them, is reported",
    )
    command.add_argument(
        "--max-tool-ratio",
        metavar="NUMBER",
        type=positive_number,
        default=10.0,
        help="warn when one tool is called this many times as often as another (default: %(default)s)",
    )
    add_tokenizer_option(command, "also check rendering and length with the model's tokenizer")
    command.add_argument(
        "--max-length",
        metavar="TOKENS",
        type=positive_integer,
        help=f"with --tokenizer: report rows with more tokens (default: {_MAX_LENGTH})",
    )
    output.add_json_option(command)


def add_reading_options(command: argparse.ArgumentParser) -> None:
    """Declare the options that say which rows are read, and how."""
    command.add_argument(
        "files",
        metavar="FILE",
        type=Path,
        nargs="+",
        help=".jsonl, .json or .parquet, the first two also gzipped; a pipe; or - for standard input. "
        "Several files are one set of rows",
    )
    add_format_option(command)
    command.add_argument(
        "--tools",
        metavar="FILE",
        type=Path,
        help="a JSON file with the tools of rows that carry none; tools that rows carry must agree with it",
    )


def add_format_option(command: argparse.ArgumentParser) -> None:
    """Declare --format."""
    formats = {form.value.lower(): form.value for form in DatasetFormat}
    command.add_argument(
        "--format",
        type=lambda text: formats.get(text.lower(), text),
        choices=[*formats.values()],
        default=DatasetFormat.AUTO.value,
        metavar="FORMAT",
        help=f"format of the rows: {', '.join(formats.values())} (default: %(default)s)",
    )


def add_tokenizer_option(command: argparse.ArgumentParser, text: str) -> None:
    """Declare --tokenizer."""
    command.add_argument(
        "--tokenizer",
        metavar="FOLDER_OR_ID",
        default="",
        help=f"a base model's folder, or its id on the Hub (with the token in HF_TOKEN): {text}",
    )


def tools_of(options: argparse.Namespace) -> "tuple[Tool, ...]":
    """Return the tools of --tools.

    Raises:
        StageError: they cannot be used.
        OSError: the file cannot be read.
    """
    from tunemill_trainer.data.files import name_of
    from tunemill_trainer.data.tools import given_tools

    if not options.tools:
        return ()
    with tempfile.TemporaryDirectory() as scratch:
        text = inputs.text_of(options.tools, Path(scratch))
    try:
        return given_tools(text, f"--tools {name_of(options.tools)}")
    except StageError as error:
        raise StageError(error.reason, error.message, "Correct the file: a JSON list of tool definitions.") from error


def main(options: argparse.Namespace) -> int:
    """Print the findings and return the exit code: 0 without errors, 65 with errors, 64 or 66 for wrong options."""
    # Imported here: other commands and the stages share this parser and do not need them.
    from tunemill_trainer.data.check import check
    from tunemill_trainer.data.dataset import ReadOptions, Split

    try:
        if options.max_length is not None and not options.tokenizer:
            raise StageError(Reason.INVALID_SPEC, "--max-length has no effect without --tokenizer", "Add --tokenizer.")
        inputs.refuse_repeated_standard_input(
            {
                "FILE": options.files,
                "--evaluation": options.evaluation,
                "--validation": options.validation,
                "--tools": [options.tools],
            }
        )
        how = ReadOptions(
            DatasetFormat(options.format),
            tools_of(options),
            workers=cpus.available(),
            tool_ratio=options.max_tool_ratio,
        )
        separate = {Split.HELD_OUT: options.evaluation, Split.VALIDATION: options.validation}
        files = [*options.evaluation, *options.validation, *options.files]
        with ProgressBar("reading", inputs.row_count(files), "rows") as bar:
            render = _renderer(options) if options.tokenizer else None
            checked = check(options.files, separate, how, render, bar.advance_to)
    except StageError as error:
        return output.fail_for("lint", error)
    except OSError as error:
        return output.fail_unreadable("lint", error)
    if checked.files:
        if options.json:
            output.show_json(checked.to_json())
        else:
            console.show(checked.to_text())
    for unreadable in checked.unreadable:
        output.fail_unreadable("lint", unreadable)
    if checked.unreadable:
        return ExitCode.INPUT_MISSING
    return ExitCode.DATA_WRONG if checked.errors else ExitCode.DONE


def _renderer(options: argparse.Namespace) -> "Callable[[Dataset], int]":
    # Imported only with --tokenizer: Transformers takes longer to import than everything else that this command does.
    from tunemill_trainer.chat.check import render_all

    return partial(render_all, base=options.tokenizer, max_length=options.max_length or _MAX_LENGTH)


COMMAND = Command(
    name="lint",
    task=Task.DATA,
    summary="check rows as the prepare stage does, and report what is wrong with them",
    add_options=add_options,
    main=main,
    examples=(
        "lint calls.jsonl",
        "lint train.jsonl --evaluation held-out.jsonl --tokenizer google/gemma-2-2b-it --max-length 1500",
        "lint - --json < calls.jsonl",
    ),
    exit_codes={
        ExitCode.SPEC_WRONG: "--tools cannot be used, or options contradict each other",
        ExitCode.DATA_WRONG: "a row has an error",
        ExitCode.INPUT_MISSING: "a file or the tokenizer cannot be read; the findings of the other files are printed",
    },
    json=JsonOutput(
        "one object",
        (
            JsonField("findings[].file", "string", "The file as given; `stdin` for standard input."),
            JsonField("findings[].line", "integer", "Line, list element or table row, from 1."),
            JsonField("findings[].rule", "string", "The rule, as in [Data](../how-to/data.md#rules)."),
            JsonField("findings[].field", "string", "Where in the row; empty when the whole row is meant."),
            JsonField("findings[].severity", "string", "`error` or `warning`."),
            JsonField("findings[].message", "string", "What is wrong."),
            JsonField("findings[].remedy", "string", "What to change."),
            JsonField("summary.files.*", "string or null", "The format of each file; null when it is unknown."),
            JsonField("summary.rows", "integer", "Rows that were read."),
            JsonField("summary.usableRows", "integer", "Rows that the prepare stage would use."),
            JsonField("summary.calls", "integer", "Tool calls in the usable rows that the model learns."),
            JsonField("summary.errors", "integer", "Findings with the severity `error`."),
            JsonField("summary.warnings", "integer", "Findings with the severity `warning`."),
            JsonField("summary.rules.*", "integer", "The number of findings of each rule."),
        ),
    ),
)

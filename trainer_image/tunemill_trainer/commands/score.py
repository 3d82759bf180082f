"""`tunemill-trainer score`: judges any model's raw replies, with the rules of evaluate and without a model.

tunemill-trainer score --rows rows.jsonl --outputs outputs.jsonl --json
"""

import argparse
import json
import sys
from pathlib import Path

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode

from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ALIASES, ReplyFormat, detect
from tunemill_trainer.process import console

_DETECT = "auto"


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    forms = [form.value for form in DatasetFormat]
    reply_formats = [_DETECT, *(reply_format.value for reply_format in ReplyFormat)]
    command.add_argument(
        "--rows", type=Path, required=True, help="rows with an `id`; the last assistant message is the right answer"
    )
    command.add_argument("--outputs", type=Path, required=True, help='one {"id", "output"} a line')
    command.add_argument(
        "--format",
        type=lambda text: next((form for form in forms if form.lower() == text.lower()), text),
        choices=forms,
        default=DatasetFormat.AUTO.value,
        metavar="FORMAT",
        help=f"of the rows: {', '.join(forms)} (default: %(default)s)",
    )
    command.add_argument(
        "--reply-format",
        type=lambda text: ALIASES.get(text.lower(), text.lower()),
        choices=reply_formats,
        default=_DETECT,
        metavar="FORMAT",
        help=f"how the replies write calls: {', '.join(reply_formats)} (default: %(default)s)",
    )
    command.add_argument("--tools", type=Path, help="a JSON file with the tools of rows that carry none")
    command.add_argument("--json", action="store_true", help="print JSON instead of tables")


def main(options: argparse.Namespace) -> int:
    """Print the report and return the exit code: 65 when the rows or the outputs are wrong."""
    # Here, so that the stages, which share the parser of the options, do not wait for them.
    from tunemill_trainer.data.findings import full_text
    from tunemill_trainer.judge.metrics import score
    from tunemill_trainer.judge.outputs import read_outputs, read_rows, read_tools_file
    from tunemill_trainer.judge.score_report import ScoreReport, UnknownReport

    try:
        rows = read_rows(
            options.rows, DatasetFormat(options.format), read_tools_file(options.tools) if options.tools else ()
        )
        replies = read_outputs(options.outputs, rows)
    except StageError as error:
        print(f"tunemill-trainer score: {full_text(error)}. {error.failure.remedy}", file=sys.stderr)
        return error.exit_code
    reply_format = (
        detect((reply.text for reply in replies), rows.tool_names)
        if options.reply_format == _DETECT
        else ReplyFormat(options.reply_format)
    )
    report = (
        ScoreReport(rows, score(rows.rows, replies, reply_format, as_served=True), reply_format)
        if reply_format
        else UnknownReport(rows)
    )
    console.show(json.dumps(report.to_json(), indent=1, ensure_ascii=False) if options.json else report.to_text())
    return ExitCode.DONE

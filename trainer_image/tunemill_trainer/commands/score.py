"""`tunemill score`: judges any model's raw replies by the rules of the evaluate stage, without running a model.

tunemill score --rows rows.jsonl --outputs outputs.jsonl --json
my-model < rows.jsonl | tunemill score --rows rows.jsonl --outputs -
"""

import argparse
import tempfile
from pathlib import Path

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode

from tunemill_trainer.commands import inputs, output
from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.errors import StageError
from tunemill_trainer.judge.parse import ALIASES, ReplyFormat, detect
from tunemill_trainer.process import console
from tunemill_trainer.process.bars import ProgressBar

_DETECT = "auto"

REPORT_FIELDS = (
    JsonField("metrics.*", "number or null", "Each metric, from 0 to 1; null where no reply counts for it."),
    JsonField("rows[].id", "string or integer", "The id of the row."),
    JsonField("rows[].tool_name", "boolean or null", "Whether the right tools are called."),
    JsonField("rows[].exact_match", "boolean or null", "Whether the calls are exactly those of the answer."),
    JsonField("rows[].ast_match", "boolean or null", "Whether they match by BFCL's rule."),
    JsonField("rows[].error", "string or null", "What is wrong; null for a right reply."),
    JsonField("cases.*", "integer", "For each metric, the replies that count for it."),
    JsonField("intervals.*[]", "number or null", "For each metric, the bounds of its 95 % interval."),
    JsonField("tools.*.wanted", "integer", "For each tool, its calls in the right answers."),
    JsonField("tools.*.made", "integer", "Its calls in the replies."),
    JsonField("tools.*.named", "integer", "Its calls in the replies that the right answers also have."),
    JsonField("tools.*.exact", "integer", "Those of them with exactly the right arguments."),
    JsonField("tools.*.precision", "number or null", "named / made."),
    JsonField("tools.*.recall", "number or null", "named / wanted."),
    JsonField("tools.*.f1", "number", "The harmonic mean of precision and recall."),
    JsonField("confusion.*.*", "integer", "For each wanted tool, how often which tool was called."),
    JsonField("faults.*", "integer", "The number of replies with each fault."),
    JsonField("slices.*.*", "number", "For each slice of the rows, its metrics."),
    JsonField("formats.rows", "string", "The format of the rows."),
    JsonField("formats.replies", "string", "The format of the replies, or `unknown`."),
)
"""The fields of a report as JSON."""


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    reply_formats = [_DETECT, *(reply_format.value for reply_format in ReplyFormat)]
    command.add_argument(
        "--rows",
        metavar="FILE",
        type=Path,
        required=True,
        help="rows with an `id` each; the last assistant message of a row is the right answer. A pipe, or - for "
        "standard input, is read, too",
    )
    command.add_argument(
        "--outputs",
        metavar="FILE",
        type=Path,
        required=True,
        help='the replies, one {"id": …, "output": …} per line; also a pipe, or - for standard input',
    )
    lint_command.add_format_option(command)
    command.add_argument(
        "--reply-format",
        type=lambda text: ALIASES.get(text.lower(), text.lower()),
        choices=reply_formats,
        default=_DETECT,
        metavar="FORMAT",
        help=f"how the replies write tool calls: {', '.join(reply_formats)} (default: %(default)s)",
    )
    command.add_argument(
        "--tools", metavar="FILE", type=Path, help="a JSON file with the tools of rows that carry none"
    )
    output.add_json_option(command)


def main(options: argparse.Namespace) -> int:
    """Print the report and return the exit code: 0, 65 when rows or outputs are wrong, 64 or 66 for wrong options."""
    # Imported here: other commands and the stages share this parser and do not need them.
    from tunemill_trainer.data.files import file_of_user
    from tunemill_trainer.judge.metrics import score
    from tunemill_trainer.judge.outputs import read_outputs, read_rows
    from tunemill_trainer.judge.score_report import ScoreReport, UnknownReport

    with tempfile.TemporaryDirectory() as scratch, ProgressBar("scoring", 3, "steps") as bar:
        try:
            inputs.refuse_repeated_standard_input(
                {"--rows": [options.rows], "--outputs": [options.outputs], "--tools": [options.tools]}
            )
            tools = lint_command.tools_of(options)
            rows = read_rows(file_of_user(options.rows, Path(scratch)), DatasetFormat(options.format), tools)
            bar.advance_to(1, "read the rows")
            replies = read_outputs(file_of_user(options.outputs, Path(scratch)), rows)
            bar.advance_to(2, "read the replies")
        except StageError as error:
            return output.fail_for("score", error)
        except OSError as error:
            return output.fail_unreadable("score", error)
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
    if options.json:
        output.show_json(report.to_json())
    else:
        console.show(report.to_text())
    return ExitCode.DONE


COMMAND = Command(
    name="score",
    task=Task.JUDGE,
    summary="judge any model's raw replies against rows with the right answers",
    add_options=add_options,
    main=main,
    examples=(
        "score --rows rows.jsonl --outputs outputs.jsonl",
        "score --rows rows.jsonl --outputs - --json < outputs.jsonl",
        "score --rows <(head -100 rows.jsonl) --outputs <(head -100 outputs.jsonl) --reply-format hermes",
    ),
    exit_codes={
        ExitCode.SPEC_WRONG: "--tools cannot be used, or options contradict each other",
        ExitCode.DATA_WRONG: "a row or an output is wrong, or they do not belong together",
        ExitCode.INPUT_MISSING: "a file cannot be read",
    },
    json=JsonOutput(
        "one object; without figures where the format of the replies is unknown",
        REPORT_FIELDS,
    ),
)

"""`tunemill evaluate`: asks an OpenAI-compatible server the held-out requests, and judges its replies as evaluate does.

tunemill evaluate --base-url https://api.example.com/v1 --model large --api-key-env KEY --dataset held-out.jsonl
"""

import argparse
import tempfile
from pathlib import Path

from tunemill_api.data import DatasetFormat
from tunemill_api.failures import ExitCode

from tunemill_trainer.commands import inputs, output
from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.commands.command import Command, JsonField, JsonOutput, Task
from tunemill_trainer.commands.option_types import positive_integer
from tunemill_trainer.commands.score import REPORT_FIELDS
from tunemill_trainer.commands.server_options import (
    EXIT_CODES,
    JSON_FIELDS,
    add_server_options,
    client_of,
    endpoint_json,
    temperature_of,
)
from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console
from tunemill_trainer.process.bars import ProgressBar


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    command.add_argument(
        "--dataset",
        metavar="FILE",
        type=Path,
        nargs="+",
        required=True,
        help="files with held-out rows; the server is asked for each assistant turn. A pipe, or - for standard input, "
        "is read, too",
    )
    lint_command.add_format_option(command)
    command.add_argument(
        "--tools", metavar="FILE", type=Path, help="a JSON file with the tools of rows that carry none"
    )
    command.add_argument(
        "--max-rows", metavar="NUMBER", type=positive_integer, help="judge a sample of so many rows (default: all)"
    )
    command.add_argument(
        "--parallel",
        metavar="NUMBER",
        type=positive_integer,
        default=4,
        help="the most requests at a time (default: %(default)s)",
    )
    add_server_options(command)
    output.add_json_option(command)


def main(options: argparse.Namespace) -> int:
    """Print the report and return the exit code."""
    from tunemill_trainer.data.files import file_of_user
    from tunemill_trainer.judge.comparison import sample
    from tunemill_trainer.judge.metrics import Reply, score
    from tunemill_trainer.judge.outputs import GoldRows, read_turns
    from tunemill_trainer.judge.score_report import SERVED, ScoreReport
    from tunemill_trainer.serving.asking import ask_all
    from tunemill_trainer.serving.errors import ServingError

    try:
        inputs.refuse_repeated_standard_input({"--dataset": options.dataset, "--tools": [options.tools]})
        tools = lint_command.tools_of(options)
        with tempfile.TemporaryDirectory() as scratch:
            files = [file_of_user(path, Path(scratch)) for path in options.dataset]
            turns, form, left_out = read_turns(files, DatasetFormat(options.format), tools)
        turns = sample(turns, options.max_rows or len(turns))
        client = client_of(options)
        with ProgressBar("asking", len(turns), "requests") as bar:
            replies = ask_all(
                client,
                turns,
                parallel=options.parallel,
                max_tokens=options.max_tokens,
                temperature=temperature_of(options),
                report=bar.advance_to,
            )
    except StageError as error:
        return output.fail_for("evaluate", error)
    except ServingError as error:
        return output.fail("evaluate", str(error), error.code)
    except OSError as error:
        return output.fail_unreadable("evaluate", error)
    judged = score(
        turns,
        [Reply(reply.text, reply.finished) for reply in replies],
        parsed=[reply.parsed for reply in replies],
    )
    report = ScoreReport(GoldRows(tuple(turns), form), judged, SERVED)
    if options.json:
        output.show_json({"endpoint": endpoint_json(client), "leftOut": left_out, **report.to_json()})
    else:
        head = f"{client.model} at {client.base_url}"
        head += f"; {left_out} rows with errors are left out" if left_out else ""
        console.show(f"{head}\n\n{report.to_text()}")
    return ExitCode.DONE


COMMAND = Command(
    name="evaluate",
    task=Task.JUDGE,
    summary="judge a model behind an OpenAI-compatible server on held-out rows",
    add_options=add_options,
    main=main,
    examples=(
        "evaluate --dataset held-out.jsonl",
        "evaluate --base-url https://api.example.com/v1 --model large --api-key-env KEY --dataset rows.jsonl --json",
    ),
    exit_codes={
        **EXIT_CODES,
        ExitCode.DATA_WRONG: "no row is usable, or an answer is not that of a chat",
    },
    json=JsonOutput(
        "one object",
        (
            *JSON_FIELDS,
            JsonField("leftOut", "integer", "Rows that are left out because they have errors."),
            *REPORT_FIELDS,
        ),
    ),
)

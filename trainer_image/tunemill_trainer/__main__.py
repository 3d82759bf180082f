"""The command line: one stage of a run, as a pod calls it, all four on one machine, and tools for data and replies.

tunemill-trainer train --run-spec run.json --work /tmp/work
tunemill-trainer run finetune.yaml
tunemill-trainer lint calls.jsonl
tunemill-trainer score --rows rows.jsonl --outputs outputs.jsonl
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tunemill_api.constants import RUN_SPEC_PATH, STAGE_DIRECTORY, TERMINATION_LOG
from tunemill_api.failures import ExitCode
from tunemill_api.stage_report import Stage

from tunemill_trainer import console, lint_command
from tunemill_trainer.judge import score_command

ENV_WORK = "TUNEMILL_WORK"
"""Where stages may write, when --work does not say."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code of `failures.ExitCode`."""
    with console.guarded():
        try:
            return _do(_parser().parse_args(arguments))
        except Exception:  # noqa: BLE001 - Python itself would print it behind the guard
            traceback.print_exc()
            return ExitCode.INTERNAL_ERROR


def _do(options: argparse.Namespace) -> int:
    if options.command == "run":
        from tunemill_trainer import one_machine

        return one_machine.main(options.manifest, options.work)
    if options.command == "lint":
        return lint_command.main(options)
    if options.command == "score":
        return score_command.main(options)
    from tunemill_trainer.stages import runner

    return runner.main(Stage(options.command), options.run_spec, options.work, options.report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunemill-trainer", description="The stages of a Tunemill run.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for stage, text in (
        (Stage.PREPARE, "check permissions and data, tokenise"),
        (Stage.TRAIN, "train the adapter"),
        (Stage.EVALUATE, "judge base and tuned model on the held-out rows"),
        (Stage.PUBLISH, "prove the adapter and push it to the Hub"),
    ):
        command = commands.add_parser(stage, help=text, description=text)
        command.add_argument(
            "--run-spec", type=Path, default=Path(RUN_SPEC_PATH), help="the RunSpec (default: %(default)s)"
        )
        work = Path(os.environ.get(ENV_WORK, f"{STAGE_DIRECTORY}/work"))
        command.add_argument("--work", type=Path, default=work, help="a folder to work in (default: %(default)s)")
        command.add_argument(
            "--report", type=Path, default=Path(TERMINATION_LOG), help="gets the StageReport (default: %(default)s)"
        )
    run = commands.add_parser(
        "run", help="all four stages on this machine", description="All four stages on this machine."
    )
    run.add_argument("manifest", type=Path, help="a YAML file with a FunctionCallFineTune")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    work = Path(os.environ.get(ENV_WORK, cache / "tunemill" / "work"))
    run.add_argument("--work", type=Path, default=work, help="a folder to work in (default: %(default)s)")
    text = "look at data as prepare does, and say what is wrong with it"
    lint_command.add_options(commands.add_parser("lint", help=text, description=text))
    text = "judge any model's raw replies against rows with their right answers"
    score_command.add_options(commands.add_parser("score", help=text, description=text))
    return parser


if __name__ == "__main__":
    sys.exit(main())

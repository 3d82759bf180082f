"""The stages of a run as commands of `tunemill-trainer`: what the pods of a run start.

tunemill-trainer train --run-spec run.json --work /tmp/work
tunemill-trainer stages train evaluate
"""

import argparse
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from tunemill_api.constants import RUN_SPEC_PATH, STAGE_DIRECTORY, TERMINATION_LOG
from tunemill_api.failures import ExitCode
from tunemill_api.stage_report import Stage

from tunemill_trainer.commands.command import Command, Task

ENV_WORK = "TUNEMILL_WORK"
"""The folder to work in when --work is not given."""
_DEFAULT_WORK = f"{STAGE_DIRECTORY}/work"

_SUMMARIES = {
    Stage.PREPARE: "check permissions and data, and tokenise the rows",
    Stage.TRAIN: "train the adapter",
    Stage.EVALUATE: "judge the base model and the tuned model on the held-out rows",
    Stage.PUBLISH: "check the adapter once more and push it to the Hub",
}


def add_options(command: argparse.ArgumentParser) -> None:
    """Declare the options of every stage."""
    command.add_argument(
        "--run-spec",
        metavar="FILE",
        type=Path,
        default=Path(RUN_SPEC_PATH),
        help="the RunSpec as JSON (default: %(default)s)",
    )
    command.add_argument(
        "--work",
        metavar="FOLDER",
        type=Path,
        default=None,
        help=f"folder to work in (default: ${ENV_WORK}, or {_DEFAULT_WORK})",
    )
    command.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        default=Path(TERMINATION_LOG),
        help="file for the StageReport (default: %(default)s)",
    )


def _add_options_of_stages(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "stages",
        metavar="STAGE",
        nargs="+",
        choices=[stage.value for stage in Stage],
        help=f"{', '.join(Stage)}; in the order of the run",
    )
    add_options(command)


def _run_stage(stage: Stage, options: argparse.Namespace) -> int:
    from tunemill_trainer.stages import runner

    work = options.work or Path(os.environ.get(ENV_WORK) or _DEFAULT_WORK)
    return runner.main(stage, options.run_spec, work, options.report)


def _run_stages(options: argparse.Namespace) -> int:
    from tunemill_trainer.stages import supervisor

    return supervisor.main([Stage(stage) for stage in options.stages], _given(options), options.report)


def _given(options: argparse.Namespace) -> list[str]:
    """Return the options that are not the defaults: a user's own program for a stage need not know the others."""
    given = []
    if options.run_spec != Path(RUN_SPEC_PATH):
        given += ["--run-spec", str(options.run_spec)]
    if options.work is not None:
        given += ["--work", str(options.work)]
    if options.report != Path(TERMINATION_LOG):
        given += ["--report", str(options.report)]
    return given


_EXIT_CODES: Mapping[int, str] = {
    ExitCode.INTERRUPTED: "stopped by SIGTERM or SIGINT; the stage continues when it is started again",
    ExitCode.PEER_LOST: "another process of a run on several GPUs was lost; start it again to continue",
}
COMMANDS = (
    *(
        Command(
            name=stage.value,
            task=Task.STAGES,
            summary=_SUMMARIES[stage],
            add_options=add_options,
            main=partial(_run_stage, stage),
            exit_codes=_EXIT_CODES,
        )
        for stage in Stage
    ),
    Command(
        name="stages",
        task=Task.STAGES,
        summary="run several stages one after the other, each in a separate process, until one fails",
        add_options=_add_options_of_stages,
        main=_run_stages,
        examples=("stages train evaluate",),
        exit_codes=_EXIT_CODES,
    ),
)

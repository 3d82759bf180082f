"""The command line: stages of a run, as pods call them, all four on one machine, and tools for data and replies.

tunemill-trainer train --run-spec run.json --work /tmp/work
tunemill-trainer stages train evaluate
tunemill-trainer run finetune.yaml
tunemill-trainer show calls.jsonl
tunemill-trainer plan finetune.yaml
tunemill-trainer lint calls.jsonl
tunemill-trainer score --rows rows.jsonl --outputs outputs.jsonl
tunemill-trainer verify acme/support-tools --key public.pem
tunemill-trainer gpu-check
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from tunemill_api.constants import RUN_SPEC_PATH, STAGE_DIRECTORY, TERMINATION_LOG
from tunemill_api.failures import ExitCode
from tunemill_api.stage_report import Stage

from tunemill_trainer.commands import lint as lint_command
from tunemill_trainer.commands import plan as plan_command
from tunemill_trainer.commands import score as score_command
from tunemill_trainer.commands import show as show_command
from tunemill_trainer.commands import verify as verify_command
from tunemill_trainer.gpu_check import command as gpu_check
from tunemill_trainer.process import console

ENV_WORK = "TUNEMILL_WORK"
"""Where stages may write, when --work does not say."""

_TOOLS: dict[str, Callable[[argparse.Namespace], int]] = {
    "gpu-check": gpu_check.main,
    "lint": lint_command.main,
    "plan": plan_command.main,
    "score": score_command.main,
    "show": show_command.main,
    "verify": verify_command.main,
}
"""The commands that are no stages."""


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
        from tunemill_trainer.commands import run as one_machine

        return one_machine.main(options.manifest, options.work)
    if options.command in _TOOLS:
        return _TOOLS[options.command](options)
    if options.command == "stages":
        from tunemill_trainer.stages import supervisor

        return supervisor.main([Stage(stage) for stage in options.stages], _given(options), options.report)
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
        _add_stage_options(commands.add_parser(stage, help=text, description=text))
    text = "run several stages, each in a process of its own, until one fails"
    several = commands.add_parser("stages", help=text, description=text)
    several.add_argument(
        "stages", nargs="+", choices=[stage.value for stage in Stage], metavar="STAGE", help="in the order of the run"
    )
    _add_stage_options(several)
    run = commands.add_parser(
        "run", help="all four stages on this machine", description="All four stages on this machine."
    )
    run.add_argument("manifest", type=Path, help="a YAML file with a FunctionCallFineTune")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    work = Path(os.environ.get(ENV_WORK, cache / "tunemill" / "work"))
    run.add_argument("--work", type=Path, default=work, help="a folder to work in (default: %(default)s)")
    text = "print rows as the trainer understands them, and what of them is learnt"
    show_command.add_options(commands.add_parser("show", help=text, description=text))
    text = "estimate the GPU memory of a run, and show which GPUs it fits"
    plan_command.add_options(commands.add_parser("plan", help=text, description=text))
    text = "look at data as prepare does, and say what is wrong with it"
    lint_command.add_options(commands.add_parser("lint", help=text, description=text))
    text = "judge any model's raw replies against rows with their right answers"
    score_command.add_options(commands.add_parser("score", help=text, description=text))
    text = "prove on one GPU that training works there"
    gpu_check.add_options(commands.add_parser("gpu-check", help=text, description=text))
    text = "check a published model against the statement of what it was made from"
    verify_command.add_options(commands.add_parser("verify", help=text, description=text))
    return parser


def _add_stage_options(command: argparse.ArgumentParser) -> None:
    for name, (default, text) in _stage_options().items():
        command.add_argument(name, type=Path, default=default, help=f"{text} (default: %(default)s)")


def _stage_options() -> dict[str, tuple[Path, str]]:
    """Return the options of a stage with their defaults and what they are."""
    return {
        "--run-spec": (Path(RUN_SPEC_PATH), "the RunSpec"),
        "--work": (Path(os.environ.get(ENV_WORK, f"{STAGE_DIRECTORY}/work")), "a folder to work in"),
        "--report": (Path(TERMINATION_LOG), "gets the StageReport"),
    }


def _given(options: argparse.Namespace) -> list[str]:
    """Return the options that are not the defaults: a stage of somebody else's making need not know them in a pod."""
    values = {name: getattr(options, name.removeprefix("--").replace("-", "_")) for name in _stage_options()}
    return [
        text
        for name, (default, _) in _stage_options().items()
        if values[name] != default
        for text in (name, str(values[name]))
    ]


if __name__ == "__main__":
    sys.exit(main())

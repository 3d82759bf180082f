"""The parser of `tunemill` and `tunemill-trainer`, and how the chosen command is run."""

import argparse
import errno
import importlib.util
import io
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Never

from tunemill_api.failures import ExitCode
from typing_extensions import override

from tunemill_trainer.commands import (
    ask,
    completion,
    evaluate,
    lint,
    models,
    output,
    plan,
    run,
    score,
    serve,
    show,
    stages,
    verify,
)
from tunemill_trainer.commands.command import USAGE_EXIT_CODE, Command, Task
from tunemill_trainer.gpu_check import command as gpu_check
from tunemill_trainer.process import console

DISTRIBUTION = "tunemill"
"""The Python distribution that this package is installed from."""
_COMMANDS = (
    lint.COMMAND,
    show.COMMAND,
    models.COMMAND,
    plan.COMMAND,
    run.COMMAND,
    gpu_check.COMMAND,
    score.COMMAND,
    ask.COMMAND,
    evaluate.COMMAND,
    serve.COMMAND,
    verify.COMMAND,
    completion.command_for(lambda: parser("tunemill")),
)
_WIDTH = 12
"""Of the column with the names in the overview."""


def commands_of(program: str) -> tuple[Command, ...]:
    """Return the commands of a program: the stages of a run are commands of `tunemill-trainer` only.

    There, `evaluate` is the stage.
    """
    if program == "tunemill":
        return _COMMANDS
    taken = {command.name for command in stages.COMMANDS}
    return (*(command for command in _COMMANDS if command.name not in taken), *stages.COMMANDS)


def main(program: str, arguments: Sequence[str]) -> int:
    """Run a command and return the exit code; see `failures.ExitCode`.

    Args:
        program: tunemill or tunemill-trainer.
        arguments: without the program's name.
    """
    _open_closed_outputs()
    with console.guarded():
        try:
            options = parse(program, arguments)
            # Without torch, Transformers prints at import that only tokenizers are available.
            os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
            return _run(options.command_to_run, options)
        except BrokenPipeError:
            # The reader of the output has seen enough, as `head` does.
            console.discard_output()
            return ExitCode.DONE
        except OSError as error:
            if error.errno != errno.ENOSPC:
                traceback.print_exc()
                return ExitCode.INTERNAL_ERROR
            console.discard_output()
            print(f"{program}: no space left on the disk: {error.filename or 'standard output'}", file=sys.stderr)
            return ExitCode.NODE_BROKEN
        except Exception:  # noqa: BLE001 - Python would print the traceback after the guard has ended
            traceback.print_exc()
            return ExitCode.INTERNAL_ERROR


def parse(program: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. `flags` has the words after --, where the command passes them on to another program."""
    passing = {command.name for command in commands_of(program) if command.passes_flags}
    words, flags = list(arguments), list[str]()
    if words[:1] and words[0] in passing and "--" in words:
        # argparse cannot tell them from positional arguments of the command.
        at = words.index("--")
        words, flags = words[:at], words[at + 1 :]
    return parser(program).parse_args(words, argparse.Namespace(flags=flags))


def _run(command: Command, options: argparse.Namespace) -> int:
    if command.needs_training and not _has_training_libraries():
        return output.fail(
            command.name,
            f"the training libraries are not installed. Run: pip install '{DISTRIBUTION}[train]'",
            ExitCode.CONFIGURATION,
        )
    return command.main(options)


def _has_training_libraries() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except ImportError:
        return False


def _open_closed_outputs() -> None:
    """Open /dev/null in place of an output that the caller has closed, where Python has None."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(Path(os.devnull).open("wb"), encoding="utf-8"))  # noqa: SIM115 - lives as long as the process


def parser(program: str) -> argparse.ArgumentParser:
    """Return the parser of a program."""
    commands = commands_of(program)
    top = _ProgramParser(program, commands)
    top.add_argument("--version", action="version", version=f"{program} {_version()}", help="print the version")
    added = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_CommandParser)
    for command in commands:
        made = added.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=_epilog(program, command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(command_to_run=command)
        command.add_options(made)
    return top


class _CommandParser(argparse.ArgumentParser):
    """A parser whose errors say how to get help, in one line."""

    @override
    def error(self, message: str) -> Never:
        self.exit(USAGE_EXIT_CODE, f"{self.prog}: {message}. See `{self.prog} --help`.\n")


class _ProgramParser(_CommandParser):
    """The parser of the program itself, whose help groups the commands by task.

    Args:
        program: its name.
        commands: its commands.
    """

    def __init__(self, program: str, commands: Sequence[Command]) -> None:
        super().__init__(prog=program)
        self._commands = commands

    @override
    def format_help(self) -> str:
        return overview(self.prog, self._commands)


def overview(program: str, commands: Iterable[Command]) -> str:
    """Return what `--help` prints: the commands by task."""
    known = list(commands)
    lines = [
        f"usage: {program} COMMAND …",
        "",
        "Fine-tune models for function calling: check the data, train, judge the replies, verify releases.",
    ]
    for task in Task:
        of_task = [command for command in known if command.task is task]
        if of_task:
            lines += ["", task.value, *(f"  {command.name:<{_WIDTH}}{command.summary}" for command in of_task)]
    lines += [
        "",
        f"`{program} COMMAND --help` describes a command, `{program} --version` prints the version.",
        "",
    ]
    return "\n".join(lines)


def _epilog(program: str, command: Command) -> str:
    if not command.examples:
        return ""
    return "\n".join(["examples:", *(f"  {program} {example}" for example in command.examples)])


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "(not installed)"

"""`tunemill completion`: prints a script for the completion of commands, options and files.

eval "$(tunemill completion bash)"
tunemill completion fish > ~/.config/fish/completions/tunemill.fish
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from tunemill_api.failures import ExitCode

from tunemill_trainer.commands.command import Command, Task
from tunemill_trainer.process import console

SHELLS = ("bash", "zsh", "fish")


def _add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def command_for(parser: Callable[[], argparse.ArgumentParser]) -> Command:
    """Return the command.

    Args:
        parser: makes the parser whose commands and options are completed.
    """

    def main(options: argparse.Namespace) -> int:
        import shtab

        made = parser()
        for action in _actions_of(made):
            if action.type is Path:
                action.complete = shtab.DIR if action.metavar == "FOLDER" else shtab.FILE  # type: ignore[attr-defined] # shtab's own
        console.show(shtab.complete(made, shell=options.shell))
        return ExitCode.DONE

    return Command(
        name="completion",
        task=Task.SHELL,
        summary="print a script for bash, zsh or fish that completes commands, options and files",
        add_options=_add_options,
        main=main,
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/tunemill",
            "completion zsh > ~/.zfunc/_tunemill",
            "completion fish > ~/.config/fish/completions/tunemill.fish",
        ),
    )


def _actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the actions of a parser and of its commands. argparse has no public way to list them."""
    for action in parser._actions:  # noqa: SLF001
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for command in action.choices.values():
                yield from _actions_of(command)

"""`tunemill completion`: prints a script for the completion of commands, options and files.

eval "$(tunemill completion bash)"
tunemill completion fish > ~/.config/fish/completions/tunemill.fish
"""

import argparse
from collections.abc import Callable

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

        console.show(shtab.complete(parser(), shell=options.shell))
        return ExitCode.DONE

    return Command(
        name="completion",
        task=Task.SHELL,
        summary="print a completion script for bash, zsh or fish",
        add_options=_add_options,
        main=main,
        examples=(
            "completion bash > ~/.local/share/bash-completion/completions/tunemill",
            "completion zsh > ~/.zfunc/_tunemill",
            "completion fish > ~/.config/fish/completions/tunemill.fish",
        ),
    )

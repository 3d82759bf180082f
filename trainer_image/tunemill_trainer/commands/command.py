"""What every command declares: its name, options, exit codes and JSON output.

The parser, the overview of `tunemill --help`, shell completion and docs/reference/command-line.md are made from it.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tunemill_api.failures import ExitCode


class Task(StrEnum):
    """What a command is for. `tunemill --help` groups the commands by it, in this order."""

    DATA = "Data"
    TRAIN = "Train"
    JUDGE = "Judge"
    RELEASE = "Release"
    SHELL = "Shell"
    STAGES = "Stages of a run, as pods start them"


@dataclass(frozen=True)
class JsonField:
    """A field of a command's JSON output.

    Attributes:
        path: from the root of the output. `[]` stands for the elements of a list, `*` for the keys of a map.
        type: string, integer, number, boolean, object, or several of them, separated by " or ".
        meaning: one sentence for the reference page.
    """

    path: str
    type: str
    meaning: str


@dataclass(frozen=True)
class JsonOutput:
    """The JSON that a command prints with --json.

    Attributes:
        form: one object, or one object a line.
        fields: everything that it may hold. Fields may be added; none is renamed, removed or given another type.
    """

    form: str
    fields: tuple[JsonField, ...]


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: as users type it.
        task: the group of the overview.
        summary: one sentence without a full stop.
        add_options: declares the options.
        main: runs the command and returns the exit code.
        examples: command lines without the program's name.
        exit_codes: what the codes mean that not every command has.
        json: the output of --json; None for a command without that option.
        needs_training: whether it needs the training libraries, which the light install leaves out.
        passes_flags: whether it passes the words after -- on to another program.
    """

    name: str
    task: Task
    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]
    examples: tuple[str, ...] = ()
    exit_codes: Mapping[int, str] = field(default_factory=dict)
    json: JsonOutput | None = None
    needs_training: bool = False
    passes_flags: bool = False


USAGE_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130
COMMON_EXIT_CODES: Mapping[int, str] = {
    ExitCode.DONE: "done",
    USAGE_EXIT_CODE: "the command line is wrong: an unknown command or option, or a value that an option does not take",
    ExitCode.INTERNAL_ERROR: "an error in Tunemill; the traceback is on standard error",
    ExitCode.NODE_BROKEN: "no space left on the disk",
    ExitCode.CONFIGURATION: "the command needs the training libraries, and they are not installed",
    INTERRUPTED_EXIT_CODE: "interrupted by Ctrl-C",
}
"""Exit codes that every command may return."""

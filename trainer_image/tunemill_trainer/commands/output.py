"""What commands print: results to standard output, errors as one line to standard error."""

import argparse
import json
import sys

from tunemill_api.failures import ExitCode

from tunemill_trainer.errors import StageError
from tunemill_trainer.process import console


def add_json_option(command: argparse.ArgumentParser, text: str = "print JSON instead of text") -> None:
    """Declare --json."""
    command.add_argument("--json", action="store_true", help=text)


def show_json(value: object) -> None:
    """Print a result as indented JSON."""
    console.show(json.dumps(value, indent=1, ensure_ascii=False))


def fail(command: str, message: str, code: int) -> int:
    """Print an error as one line, and return the exit code."""
    print(f"tunemill {command}: {message}", file=sys.stderr)
    return code


def fail_for(command: str, error: StageError) -> int:
    """Print an error with its remedy as one line, and return its exit code."""
    from tunemill_trainer.data.findings import full_text

    return fail(command, f"{full_text(error)}. {error.failure.remedy}", error.exit_code)


def fail_unreadable(command: str, error: OSError) -> int:
    """Print which file cannot be read and why, and return the exit code."""
    message = f"{error.filename} could not be read: {error.strerror}. Correct the path."
    return fail(command, message, ExitCode.INPUT_MISSING)

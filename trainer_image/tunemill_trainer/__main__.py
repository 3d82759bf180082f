"""Entry points: `tunemill` on a laptop, and `tunemill-trainer` in the trainer image.

Both take the same commands. `tunemill-trainer` also takes the stages of a run, as pods start them.
"""

import sys
from collections.abc import Sequence

_INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended, as shells define it: 128 and the number of SIGINT."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `tunemill-trainer` and return the exit code."""
    return _run("tunemill-trainer", arguments)


def tunemill(arguments: Sequence[str] | None = None) -> int:
    """Run `tunemill` and return the exit code."""
    return _run("tunemill", arguments)


def _run(program: str, arguments: Sequence[str] | None) -> int:
    try:
        # Imported here, so that Ctrl-C during the imports also ends without a traceback.
        from tunemill_trainer.commands import program as commands

        return commands.main(program, sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print(f"{program}: interrupted", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

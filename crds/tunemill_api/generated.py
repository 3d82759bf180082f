"""Command line for generators: writes generated files into the repository, or checks that they are up to date."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def main(description: str | None, files: Callable[[Path], Mapping[str, str]]) -> int:
    """Write the files, or check them with `--check`. Return the exit status.

    Args:
        description: description of the command for `--help`.
        files: returns the content of every file by its path from the root, which is its argument.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("root", type=Path, help="the repository's root")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    arguments = parser.parse_args()
    stale = []
    for name, content in files(arguments.root).items():
        path: Path = arguments.root / name
        if path.exists() and path.read_text() == content:
            continue
        stale.append(name)
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if stale and arguments.check:
        print(f"out of date, run `make generate`: {', '.join(stale)}", file=sys.stderr)
        return 1
    if not arguments.check:
        print(f"generated: {', '.join(stale) or 'nothing changed'}")
    return 0

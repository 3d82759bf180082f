"""Writes what is generated from the chart: `python -m tunemill_dev.chart ROOT`.

`--check` writes nothing and fails when a file differs from what would be written.
"""

import argparse
import sys
from pathlib import Path

from tunemill_dev.chart.manifests import INSTALL, golden_files, install_manifest
from tunemill_dev.chart.values_page import PAGE, values_page


def main() -> int:
    """Write the files, or tell which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="the repository's root")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    arguments = parser.parse_args()
    root: Path = arguments.root
    files = {PAGE: values_page(), INSTALL: install_manifest(), **golden_files(root)}
    stale = [name for name, text in files.items() if not (root / name).exists() or (root / name).read_text() != text]
    if stale and arguments.check:
        print(f"out of date, run `make generate`: {', '.join(stale)}", file=sys.stderr)
        return 1
    for name in stale:
        (root / name).write_text(files[name])
    if not arguments.check:
        print(f"generated: {', '.join(stale) or 'nothing changed'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

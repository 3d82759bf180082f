"""Measures all families and writes docs/reference/serving.md; `make test-serving` checks it."""

import sys
import tempfile
from pathlib import Path

from tunemill_dev.serving import report
from tunemill_dev.serving.cells import measure
from tunemill_dev.serving.engines import engines
from tunemill_dev.serving.families import SERVED
from tunemill_dev.serving.training import trained


def main(root: Path) -> int:
    """Return 1 if a cell is red."""
    found = {}
    with engines(root) as running:
        for name in SERVED:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(trained(name), running, Path(folder))
            report.write(root, found)
            (root / report.PAGE).write_text(report.page(root, found), encoding="utf-8")
            print(name, "right" if found[name].right else "\n  ".join(["wrong:", *found[name].notes]), flush=True)
    return any(not cells.right for cells in found.values())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

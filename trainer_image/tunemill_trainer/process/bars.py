"""Progress bars on standard error, drawn by tqdm. Nothing is drawn unless a terminal shows both outputs."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from tqdm import tqdm


ENV_BAR = "TUNEMILL_PROGRESS_BAR"
"""Set by `tunemill run` for its stages: draw a bar instead of logging the progress."""


def is_terminal() -> bool:
    """Return whether standard output and standard error are shown by a terminal that can move its cursor."""
    streams = (sys.__stdout__, sys.__stderr__)
    shown = all(stream is not None and not stream.closed and stream.isatty() for stream in streams)
    return shown and os.environ.get("TERM") != "dumb"


class ProgressBar:
    """A bar that disappears when it is closed. A context manager.

    Args:
        description: one or two words; not taken from the data, because nothing is redacted here.
        total: the number at which the work is done; None when it is not known.
        unit: what is counted.
    """

    _bar: "tqdm[None] | None"

    def __init__(self, description: str, total: int | None, unit: str) -> None:
        self._bar = None
        if is_terminal():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=description,
                total=total,
                unit=f" {unit}",
                file=sys.__stderr__,
                leave=False,
                dynamic_ncols=True,
                bar_format=None
                if total is None
                else "{desc} {percentage:3.0f} % |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}{postfix}]",
            )

    def advance_to(self, done: int, note: str = "") -> None:
        """Show how much is done, and optionally a few figures."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Take the bars away while the block prints, and draw them again below what it printed."""
    # Without a bar nothing has imported tqdm.
    if "tqdm" not in sys.modules or not is_terminal():
        yield
        return
    from tqdm import tqdm

    # It takes away the bars of this stream.
    with tqdm.external_write_mode(file=sys.__stderr__):
        yield
        sys.stdout.flush()
